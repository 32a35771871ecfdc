"""A transformer's graph cut into a chain of smaller graphs that also return the inputs of their linears.

What a segment returns is read and dropped before the next one runs, so the memory that taps take is that of one
segment. Nothing is computed twice, and the weights stay in the bundle's file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from livemoments.errors import EngineError
from livemoments.graphs.linears import LinearId, find_linears
from livemoments.graphs.operands import find_keys_values, find_operands

_BLOCK = re.compile(r"^transformer_blocks\.(\d+)\.")
_EXAMPLE_BATCH = 1


@dataclass(frozen=True, slots=True)
class Tap:
    """One activation that feeds one or more linears.

    Attributes:
        value: its name in the graph.
        linears: the linears that it feeds, in the graph's order, then the operands that it is; never empty.
        features: its last axis.
        elements: the number of its elements for one tile.
    """

    value: str
    linears: tuple[LinearId, ...]
    features: int
    elements: int

    @property
    def key(self) -> LinearId:
        """A name that does not depend on the tile size: the first linear's."""
        return self.linears[0]


@dataclass(frozen=True, slots=True)
class Segment:
    """A graph of the chain.

    Attributes:
        model: serialized; external data is named relative to the bundle's stage folder.
        inputs: values it takes, from the stage's inputs or from segments before it.
        outputs: values that later segments or the caller need.
        taps: activations it returns besides.
    """

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[Tap, ...]


def find_taps(model: ir.Model, stage: str, *, operands: bool = False) -> list[Tap]:
    """Every activation that feeds a linear of the transformer, in the graph's order.

    Args:
        model: the graph.
        stage: its stage.
        operands: also what attention reads and the keys and values that the network gives, under the names of
            :mod:`livemoments.graphs.operands`.
    """
    feeds: dict[str, list[LinearId]] = {}
    widths: dict[str, int] = {}
    found = [(linear.input_value, linear.id, linear.in_features) for linear in find_linears(model, stage)]
    if operands:
        found += [(o.tokens.name or "", o.id, o.width) for o in find_operands(model, stage)]
        found += [(o.tokens.name or "", o.id, o.width) for o in find_keys_values(model, stage)]
    for name, fed, width in found:
        feeds.setdefault(name, []).append(fed)
        widths[name] = width
    values = {value.name: value for node in model.graph for value in node.outputs}
    return [
        Tap(name, tuple(fed), widths[name], _elements(values[name])) for name, fed in feeds.items() if name in values
    ]


def cut(model: ir.Model, taps: Sequence[Tap], *, budget_bytes: int) -> list[Segment]:
    """Cut a graph before transformer blocks so that each segment's taps stay within a budget.

    Args:
        model: not changed.
        taps: :func:`find_taps`'s result.
        budget_bytes: room for float32 activations per tile; those of one block are always taken.

    Raises:
        EngineError: a value that crosses a cut has no known type.
    """
    proto = ir.to_proto(model)
    nodes = list(proto.graph.node)
    place = _assign(proto.graph, _cuts(nodes, taps, budget_bytes))
    return [_segment(proto, place, number, taps) for number in range(max(place, default=0) + 1)]


def _elements(value: ir.Value) -> int:
    dims = value.shape if value.shape is not None else ()
    total = 1
    for dim in dims:
        total *= dim if isinstance(dim, int) else _EXAMPLE_BATCH
    return total


def _cuts(nodes: Sequence[onnx.NodeProto], taps: Sequence[Tap], budget_bytes: int) -> list[int]:
    """Indices of the nodes that begin a segment; the first is 0."""
    begins: dict[int, int] = {}  # block -> its first node
    for index, node in enumerate(nodes):
        for name in node.input:
            if match := _BLOCK.match(name):
                begins.setdefault(int(match[1]), index)
    starts = sorted(begins.values())[1:]
    cost = {tap.value: tap.elements * 4 for tap in taps}
    found, held = [0], 0
    for index, node in enumerate(nodes):
        if index in starts:
            end = next((start for start in starts if start > index), len(nodes))
            ahead = sum(cost.get(name, 0) for later in nodes[index:end] for name in later.output)
            if held + ahead > budget_bytes:
                found.append(index)
                held = 0
        held += sum(cost.get(name, 0) for name in node.output)
    return found


def _assign(graph: onnx.GraphProto, cuts: Sequence[int]) -> list[int]:
    """The segment of every node: the one it lies in.

    Nodes that read only what the caller gives go where they are first needed, so that the slices of the motion's
    bias, which stand at the beginning, are not all carried along.
    """
    place = [sum(start <= index for start in cuts) - 1 for index in range(len(graph.node))]
    given = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    needed: dict[str, int] = {}
    for index in reversed(range(len(place))):
        node = graph.node[index]
        readers = [needed[name] for name in node.output if name in needed]
        if readers and given.issuperset(node.input):
            place[index] = max(place[index], min(readers))
        for name in node.input:
            needed[name] = min(needed.get(name, place[index]), place[index])
    return place


def _segment(proto: onnx.ModelProto, place: Sequence[int], number: int, taps: Sequence[Tap]) -> Segment:
    graph = proto.graph
    nodes = [node for node, where in zip(graph.node, place, strict=True) if where == number]
    made = {name for node in nodes for name in node.output if name}
    read = {name for node in nodes for name in node.input if name}
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    stored = {tensor.name for tensor in graph.initializer}
    later = {n for node, where in zip(graph.node, place, strict=True) if where > number for n in node.input}
    wanted = later | {value.name for value in graph.output}
    inputs = [name for name in _ordered(nodes) if name in read - made - stored]
    outputs = [name for node in nodes for name in node.output if name in wanted]
    mine = tuple(tap for tap in taps if tap.value in made)
    known = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
    returned = dict.fromkeys([*outputs, *(tap.value for tap in mine)])
    part = onnx.GraphProto(name=f"{graph.name}.{number}", node=nodes, initializer=weights)
    part.input.extend(_typed(known, name) for name in inputs)
    part.output.extend(_typed(known, name) for name in returned)
    part.value_info.extend(known[name] for name in sorted(made - set(returned)) if name in known)
    model = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=part)
    return Segment(model.SerializeToString(), tuple(inputs), tuple(outputs), mine)


def _ordered(nodes: Iterable[onnx.NodeProto]) -> dict[str, None]:
    return dict.fromkeys(name for node in nodes for name in node.input)


def _typed(known: Mapping[str, onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    if name not in known or not known[name].type.tensor_type.elem_type:
        raise EngineError(f"the graph does not say the type of '{name}'", fix="export the bundle again")
    return known[name]
