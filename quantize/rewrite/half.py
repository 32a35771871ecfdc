"""A float32 graph in half precision, with the islands in float32 that the exporter keeps there.

Islands: the statistics of every group norm (sums of squares overflow in half precision without a NaN), the posterior's
standard deviation (small ones would be subnormal), and images, flows, means and standard deviations at the graph's
edges. Layer norms take their statistics in float32 by themselves (``stash_type`` 1), attention's softmax is inside
``MultiHeadAttention``. The flow network is never converted.

Requires: a float32 graph of a bundle. Ensures: float32 weights outside of islands are float16, lazily; casts stand at
the islands' borders; outputs named in :data:`WIDE` are float32 still, all others float16, and inputs likewise.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from livemoments.errors import EngineError
from livemoments.graphs.tensors import read_tensor
from livemoments.types import TensorSpec

WIDE = frozenset({"image", "flow", "mean", "std"})
"""Inputs and outputs that stay in float32, as in the exporter's float16 bundles."""
_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_RESIZE = "Resize"  # its region and its scales are float32 whatever its data's type


def half_specs(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs of inputs or outputs after the conversion."""
    return tuple(
        TensorSpec(spec.name, "float16", spec.shape) if spec.dtype == "float32" and spec.name not in WIDE else spec
        for spec in specs
    )


def to_fp16(model: ir.Model) -> None:
    """Apply the pass; ``model`` is changed in place.

    Raises:
        EngineError: when a weight is read that overflows in half precision.
    """
    island = _islands(model)
    borders = {value for value in (*model.graph.inputs, *model.graph.outputs) if value.name in WIDE}
    wide_constants = {
        value
        for node in model.graph
        for value in (node.inputs if node in island else node.inputs[1:] if node.op_type == _RESIZE else ())
        if value is not None and value.is_initializer()
    }
    for value in list(model.graph.initializers.values()):
        if value.dtype == _FLOAT and value not in wide_constants:
            _narrow_constant(value)
    for value in model.graph.inputs:
        if value.dtype == _FLOAT and value not in borders:
            value.type = ir.TensorType(_HALF)
    produced = {out: node for node in model.graph for out in node.outputs}
    for value, node in produced.items():
        if node not in island and value.dtype == _FLOAT:
            value.type = ir.TensorType(_HALF)
    _cast_borders(model, island, borders)


def _islands(model: ir.Model) -> set[ir.Node]:
    """The nodes that compute in float32."""
    island: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type == "Reciprocal":  # of a group norm's standard deviation
            island |= _backwards(node)
            island |= {usage.node for usage in node.outputs[0].uses() if usage.node.op_type == "Mul"}
        elif node.op_type == "Exp":  # of half the posterior's log variance
            island |= _backwards(node)
    return island


def _backwards(node: ir.Node) -> set[ir.Node]:
    """A node and what it is computed from, back to the nearest Reshape (which belongs to it), Split or Conv."""
    reached, open_nodes = {node}, [node]
    while open_nodes:
        for value in open_nodes.pop().inputs:
            source = value.producer() if value is not None else None
            if source is None or source in reached or source.op_type in ("Split", "Conv"):
                continue
            reached.add(source)
            if source.op_type != "Reshape":
                open_nodes.append(source)
    return reached


def _narrow_constant(value: ir.Value) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    name = value.name

    def read() -> ir.TensorProtocol:
        with np.errstate(over="ignore"):
            narrow = read_tensor(tensor).astype(np.float16)
        if not np.isfinite(narrow).all():
            raise EngineError(f"'{name}' holds values beyond half precision", fix="use a recipe that keeps float32")
        return ir.tensor(narrow, name=name)

    if not isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):  # small, and not the same in every tile size's graph
        value.const_value = read()
    else:
        value.const_value = ir.LazyTensor(read, dtype=_HALF, shape=ir.Shape(tensor.shape.numpy()), name=name)
    value.type = ir.TensorType(_HALF)


def _cast_borders(model: ir.Model, island: set[ir.Node], borders: set[ir.Value]) -> None:
    """Insert a cast wherever a float of one width meets a node of the other."""
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(model.graph):
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (_FLOAT, _HALF) or node.op_type in ("Cast", "Shape"):
                continue
            if index and node.op_type == _RESIZE:
                continue
            wanted = _FLOAT if node in island else _HALF
            if value.dtype != wanted:
                node.replace_input_with(index, _cast(model, value, wanted, made, node))
    for index, output in enumerate(model.graph.outputs):
        wanted = _FLOAT if output in borders else _HALF
        if output.dtype not in (_FLOAT, _HALF) or output.dtype == wanted:
            continue
        cast = _cast(model, output, wanted, made, None)
        name, output.name = output.name, f"{output.name}.{'half' if wanted == _FLOAT else 'wide'}"
        cast.name = name
        model.graph.outputs[index] = cast


def _cast(
    model: ir.Model,
    value: ir.Value,
    wanted: ir.DataType,
    made: dict[tuple[ir.Value, ir.DataType], ir.Value],
    before: ir.Node | None,
) -> ir.Value:
    if (value, wanted) not in made:
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(wanted))], name=f"{value.name}.cast.node")
        (result,) = node.outputs
        result.name = f"{value.name}.{'wide' if wanted == _FLOAT else 'half'}"
        result.type, result.shape = ir.TensorType(wanted), value.shape
        if before is None:
            model.graph.append(node)
        else:
            model.graph.insert_before(before, node)
        made[value, wanted] = result
    return made[value, wanted]
