"""A transformer's graph cut into a chain of smaller graphs that also return the inputs of their linears.

What a segment returns is read and dropped before the next one runs, so the memory that taps take is that of one
segment. Nothing is computed twice, and the weights stay in the bundle's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from livemoments.chains.blocks import Wires, block_starts, places
from livemoments.chains.chain import Segment, given_to, segment, wires_of
from livemoments.graphs.linears import LinearId, find_linears
from livemoments.graphs.operands import find_keys_values, find_operands

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
    nodes = wires_of(proto.graph.node)
    place = places(nodes, given_to(proto.graph), _cuts(nodes, taps, budget_bytes))
    return [segment(proto, place, number, taps) for number in range(max(place, default=0) + 1)]


def _elements(value: ir.Value) -> int:
    dims = value.shape if value.shape is not None else ()
    total = 1
    for dim in dims:
        total *= dim if isinstance(dim, int) else _EXAMPLE_BATCH
    return total


def _cuts(nodes: Sequence[Wires], taps: Sequence[Tap], budget_bytes: int) -> list[int]:
    """Indices of the nodes that begin a segment; the first is 0."""
    starts = block_starts(nodes)[1:]
    cost = {tap.value: tap.elements * 4 for tap in taps}
    found, held = [0], 0
    for index, (_, _, outputs) in enumerate(nodes):
        if index in starts:
            end = next((start for start in starts if start > index), len(nodes))
            ahead = sum(cost.get(name, 0) for _, _, later in nodes[index:end] for name in later)
            if held + ahead > budget_bytes:
                found.append(index)
                held = 0
        held += sum(cost.get(name, 0) for name in outputs)
    return found
