"""What the rewrites share: reading weights one at a time, adding constants and nodes to a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from livemoments.graphs.linears import Linear
from livemoments.graphs.tensors import read_tensor
from livemoments.quantize.weights import ChannelWeights

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Target:
    """A linear to rewrite: the graph's node, its input, its weight."""

    linear: Linear
    node: ir.Node
    data: ir.Value
    weight: ir.Value

    @property
    def name(self) -> str:
        """The weight's name without its ending: what new constants are named after."""
        return self.linear.id.weight.removesuffix(".weight")


def read_weight(weight: ir.Value) -> np.ndarray:
    """A weight (K, N) in float32."""
    if weight.const_value is None:
        raise ValueError(f"'{weight.name}' has no value")
    return read_tensor(weight.const_value).astype(np.float32, copy=False)


class LastResult:
    """Remembers what one computation gave, so that the parts of a quantized weight, which are written one after the
    other, cost one quantization and never more than one weight's memory.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._result: Any = None

    def of(self, key: object, compute: Callable[[], R]) -> R:
        """``compute()``, unless it was the last one that was asked for."""
        if self._key != key:
            self._key, self._result = None, None  # the old one goes before the new one comes
            self._result = compute()
            self._key = key
        result: R = self._result
        return result


class GraphEditor:
    """Adds constants and nodes to a graph; new values are named after what they belong to."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small constant, stored in the graph's own file; the one of this name if there is one already."""
        return self._register(name, ir.tensor(array, name=name))

    def lazy(self, name: str, make: Callable[[], np.ndarray], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """A constant that is computed when it is written."""

        def read() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(make()), dtype=dtype, name=name)

        return self._register(name, ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name))

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.Value(
            name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
        )
        self.graph.register_initializer(value)
        return value

    def before(
        self,
        place: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        dtypes: Sequence[ir.DataType],
        *,
        domain: str = "",
        like: ir.Value | None = None,
        **attributes: int | float,
    ) -> list[ir.Value]:
        """Insert a node before another one.

        Args:
            place: the node to insert before.
            op: the operator.
            inputs: its inputs.
            names: of its outputs.
            dtypes: of its outputs.
            domain: the operator's.
            like: a value whose shape the first output has.
            attributes: integers and floats.
        """
        attrs = [
            ir.AttrInt64(key, value) if isinstance(value, int) else ir.AttrFloat32(key, value)
            for key, value in attributes.items()
        ]
        node = ir.Node(domain, op, inputs, attrs, num_outputs=len(names), name=f"{names[0]}.node")
        for output, name, dtype in zip(node.outputs, names, dtypes, strict=True):
            output.name, output.type = name, ir.TensorType(dtype)
        if like is not None:
            node.outputs[0].shape = like.shape
        self.graph.insert_before(place, node)
        return list(node.outputs)

    def replace(self, old: ir.Node, new: ir.Value) -> None:
        """Let everything read ``new`` instead of what ``old`` gives, and remove ``old``; the name stays."""
        result = old.outputs[0]
        name = result.name
        ir.convenience.replace_all_uses_with(result, new, replace_graph_outputs=True)
        result.name = f"{name}.replaced"
        new.name, new.shape = name, result.shape
        self.graph.remove(old, safe=True)


def float_type(target: Target) -> ir.DataType:
    """The type that a linear computes in: its weight's."""
    tensor = target.weight.const_value
    return ir.DataType.FLOAT if tensor is None else tensor.dtype


def as_scale(scale: np.ndarray, kind: ir.DataType) -> np.ndarray:
    """Scales in the type of the graph; those too small for it become its smallest normal number instead of 0."""
    dtype = kind.numpy()
    return np.maximum(scale.astype(dtype), np.finfo(dtype).smallest_normal)


def step_input(model: ir.Model) -> ir.Value | None:
    """The graph's ``step`` input, ``None`` for stages that take none."""
    return next((value for value in model.graph.inputs if value.name == "step"), None)


def add_quantize_pair(
    editor: GraphEditor,
    target: Target,
    scale: np.ndarray,
    zero: np.ndarray,
    step: ir.Value | None,
    *,
    kind: ir.DataType | None = None,
) -> ir.Value:
    """Quantize a target's input and dequantize it again before the target; returns the dequantized value.

    Args:
        editor: of the graph.
        target: the first linear that reads the input.
        scale: (P,) float32, or (1,) without ``step``.
        zero: as many, in the type to quantize to.
        step: picks among the P.
        kind: the float type of the pair, to which the input is cast; the target's by default.
    """
    kind, name = kind or float_type(target), f"{target.name}.input"
    data, place = target.data, target.node
    if kind != float_type(target):
        (data,) = editor.before(place, "Cast", [data], [f"{name}.wide"], [kind], like=data, to=int(kind))
    scales = as_scale(scale, kind)
    codes_type = ir.DataType.from_numpy(zero.dtype)
    if step is None:
        parameters = [
            editor.constant(f"{name}.scale", scales.reshape(())),
            editor.constant(f"{name}.zero", zero.reshape(())),
        ]
    else:
        tables = (editor.constant(f"{name}.scales", scales), editor.constant(f"{name}.zeros", zero))
        parameters = [
            editor.before(place, "Gather", [table, step], [f"{name}.{part}"], [table.dtype or kind])[0]
            for table, part in zip(tables, ("scale", "zero"), strict=True)
        ]
    names = [f"{name}.quantized"]
    (codes,) = editor.before(place, "QuantizeLinear", [data, *parameters], names, [codes_type], like=data)
    (back,) = editor.before(place, "DequantizeLinear", [codes, *parameters], [f"{name}.dequantized"], [kind], like=data)
    return back


def add_channel_weight(
    editor: GraphEditor,
    target: Target,
    memory: LastResult,
    quantize: Callable[[np.ndarray], ChannelWeights],
    dtype: ir.DataType,
    *,
    kind: ir.DataType | None = None,
) -> ir.Value:
    """Store a target's weight quantized, one scale per output channel; returns the dequantized value in ``kind``, or in
    the target's type.
    """
    linear, weight = target.linear, target.weight
    name = linear.id.weight
    kind = kind or float_type(target)

    def result() -> ChannelWeights:
        return memory.of(name, lambda: quantize(read_weight(weight)))

    columns = (linear.out_features,)
    values = editor.lazy(f"{name}.values", lambda: result().values, dtype, (linear.in_features, *columns))
    scale = editor.lazy(f"{name}.scale", lambda: as_scale(result().scale, kind), kind, columns)
    zero = editor.constant(f"{name}.zero", np.zeros(columns, dtype.numpy()))
    (back,) = editor.before(
        target.node, "DequantizeLinear", [values, scale, zero], [f"{name}.dequantized"], [kind], like=weight, axis=1
    )
    return back
