"""A bundle's graph as the planner sees it: nodes, and the shape, type and bytes of every tensor. No weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from livemoments.chains.blocks import block_cuts, places
from livemoments.errors import BundleError

_ROUNDS = 64  # shape inference and folding take turns; RAFT needs four
_SMALL = 1 << 14  # whole numbers of a tensor that may be a shape or positions, and is computed
_FEW = 16  # and others
_MICROSOFT = "com.microsoft"
_LIKE_INPUT = frozenset({"MultiHeadAttention", "Gelu", "FastGelu", "QuickGelu"})
"""Operators of onnxruntime whose output has the first input's shape and type."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and ONNX type (``onnx.TensorProto``'s number) of one tensor."""

    shape: tuple[int, ...]
    dtype: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes; types below a byte are packed."""
        return math.ceil(self.elements * bits_of(self.dtype) / 8)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator: its type, names of its inputs (empty: left out) and outputs, and its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CostGraph:
    """One graph at one size.

    Attributes:
        nodes: in the order in which they run; those that depend on shapes alone are gone.
        tensors: of every name that a node reads or writes.
        inputs: of the graph, in order.
        outputs: of the graph, in order.
        weights: the names of tensors that lie in the bundle's files.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: frozenset[str]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.tensors[name].bytes for name in self.weights)

    @property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(self.tensors[name].elements for name in self.weights)


def block_parts(graph: CostGraph) -> tuple[CostGraph, ...]:
    """A transformer's graph cut where its blocks begin, as ``--residency streamed`` cuts it."""
    wires = [(node.op, node.inputs, node.outputs) for node in graph.nodes]
    made = {name for node in graph.nodes for name in node.outputs}
    place = places(wires, graph.tensors.keys() - made, block_cuts(wires), sums_to_readers=True)
    parts = []
    for number in range(max(place, default=0) + 1):
        nodes = tuple(node for node, where in zip(graph.nodes, place, strict=True) if where == number)
        own = {name for node in nodes for name in node.outputs if name}
        read = dict.fromkeys(name for node in nodes for name in node.inputs if name and name not in own)
        later = {n for node, where in zip(graph.nodes, place, strict=True) if where > number for n in node.inputs}
        outputs = tuple(name for node in nodes for name in node.outputs if name in later or name in graph.outputs)
        weights = graph.weights & read.keys()
        parts.append(CostGraph(nodes, graph.tensors, tuple(n for n in read if n not in weights), outputs, weights))
    return tuple(parts)


def bits_of(dtype: int) -> int:
    """Bits of one number of an ONNX type."""
    if dtype in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(dtype).itemsize) * 8


def read_graph(path: Path, axes: Mapping[str, int]) -> CostGraph:
    """Read a graph without its weights and find every tensor's shape.

    Args:
        path: the ``.onnx`` file.
        axes: lengths of the free axes by name: ``batch``, and of flow's graph ``height`` and ``width``.

    Raises:
        BundleError: the file is no graph, or some shape cannot be found.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own
        raise BundleError(path, f"is no ONNX graph ({type(error).__name__})", fix="export the bundle again") from None
    return cost_graph(model, axes, path)


def cost_graph(model: onnx.ModelProto, axes: Mapping[str, int], path: Path | str = "the graph") -> CostGraph:
    """The same from a graph in memory, which is changed.

    Raises:
        BundleError: some shape cannot be found.
    """
    graph = model.graph
    _set_axes(graph, axes)
    weights = {tensor.name: Tensor(tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    try:
        known = _infer(model)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).strip().splitlines()[0]
        raise BundleError(path, f"its shapes cannot be found: {reason}", fix="export the bundle again") from None
    kept = _needed(graph)
    nodes, used = [], set()
    for number, node in enumerate(graph.node):
        if number not in kept:
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        nodes.append(Node(node.op_type, tuple(node.input), tuple(node.output), attributes))
        used |= {name for name in (*node.input, *node.output) if name}
    missing = sorted(used - known.keys())
    if missing:
        raise BundleError(path, f"the shape of '{missing[0]}' cannot be found; {len(missing)} are missing in all")
    inputs, outputs = tuple(i.name for i in graph.input), tuple(o.name for o in graph.output)
    tensors = {name: known[name] for name in used | {*inputs, *outputs}}
    return CostGraph(tuple(nodes), tensors, inputs, outputs, frozenset(weights.keys() & used))


def _set_axes(graph: onnx.GraphProto, axes: Mapping[str, int]) -> None:
    del graph.value_info[:]  # what the exporter wrote down may be of another batch
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in axes:
                dimension.dim_value = axes[dimension.dim_param]


def _infer(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Shapes by onnx's inference; where it stops, what depends on shapes alone is computed, and it goes on.

    Nodes that were computed become initializers, and are taken out of the graph.
    """
    known: dict[str, Tensor] = {}
    for _ in range(_ROUNDS):
        inferred = onnx.shape_inference.infer_shapes(_with_known_operators(model), data_prop=True)
        before = len(known)
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
            if (tensor := _tensor_of(value)) is not None:
                known[value.name] = tensor
        known |= {one.name: Tensor(tuple(one.dims), one.data_type) for one in model.graph.initializer}
        added = _microsoft(model.graph, known)
        folded = _fold(model.graph, known, model.opset_import)
        if not folded and not added and len(known) == before:
            break
    return known


def _with_known_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """For inference: onnxruntime's operators, which onnx does not know, as what leaves shape and type alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.domain == _MICROSOFT and node.op_type in _LIKE_INPUT:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    return copy


def _tensor_of(value: onnx.ValueInfoProto) -> Tensor | None:
    kind = value.type.tensor_type
    if not kind.elem_type or not kind.HasField("shape"):
        return None
    if not all(dimension.HasField("dim_value") for dimension in kind.shape.dim):
        return None
    return Tensor(tuple(dimension.dim_value for dimension in kind.shape.dim), kind.elem_type)


def _microsoft(graph: onnx.GraphProto, known: dict[str, Tensor]) -> int:
    """Outputs of onnxruntime's own operators, which onnx does not know; how many were new."""
    added = 0
    for node in graph.node:
        if node.domain != _MICROSOFT or node.output[0] in known or node.input[0] not in known:
            continue
        first = known[node.input[0]]
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        shape = first.shape
        if node.op_type == "MatMulNBits":
            shape = (*first.shape[:-1], attributes["N"])
        elif node.op_type not in _LIKE_INPUT:
            continue
        known[node.output[0]] = Tensor(shape, first.dtype)
        info = onnx.helper.make_tensor_value_info(node.output[0], first.dtype, shape)
        graph.value_info.append(info)
        added += 1
    return added


def _fold(graph: onnx.GraphProto, known: Mapping[str, Tensor], opsets: Sequence[onnx.OperatorSetIdProto]) -> int:
    """Compute what depends on shapes and small constants alone; how many nodes went."""
    values = {
        one.name: numpy_helper.to_array(one)
        for one in graph.initializer
        if one.data_location != onnx.TensorProto.EXTERNAL and _is_small(math.prod(one.dims), one.data_type)
    }
    names = {output.name for output in graph.output}
    folded, kept = 0, []
    for node in graph.node:
        results = None
        if not names.intersection(node.output):
            results = _value_of(node, known, values, opsets)
        if results is None:
            kept.append(node)
            continue
        folded += 1
        for name, array in zip(node.output, results, strict=True):
            values[name] = array
            graph.initializer.append(numpy_helper.from_array(array, name))
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
    return folded


def _value_of(
    node: onnx.NodeProto,
    known: Mapping[str, Tensor],
    values: Mapping[str, np.ndarray],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> list[np.ndarray] | None:
    """The outputs of a node that can be computed now, else ``None``."""
    if node.op_type == "Shape" and node.input[0] in known:
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        return [np.array(known[node.input[0]].shape[ends.get("start", 0) : ends.get("end")], np.int64)]
    if node.domain == _MICROSOFT or not all(name in values for name in node.input if name):
        return None
    if not all(_is_small(known[name].elements, known[name].dtype) for name in node.output if name in known):
        return None
    inputs = {name: values[name] for name in node.input if name}
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    graph = onnx.helper.make_graph(
        [node],
        "one",
        given,
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
    )
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    results = [np.asarray(array) for array in ReferenceEvaluator(model).run(None, inputs)]
    small = [_is_small(array.size, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)) for array in results]
    return results if all(small) else None


def _is_small(elements: int, dtype: int) -> bool:
    whole = dtype in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return elements <= (_SMALL if whole else _FEW)


def _needed(graph: onnx.GraphProto) -> set[int]:
    """The places of nodes that some output depends on: what was only used for shapes is not among them."""
    wanted = {output.name for output in graph.output}
    kept: set[int] = set()
    for number, node in reversed(list(enumerate(graph.node))):
        if wanted.intersection(node.output):
            kept.add(number)
            wanted.update(node.input)
    return kept
