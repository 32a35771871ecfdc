"""Where a transformer's graph can be cut: which node begins which block, and which part every node goes to.

Graphs are given as plain wires, so that written graphs and the planner's are cut alike. No extra is needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

Wires = tuple[str, Sequence[str], Sequence[str]]
"""A node: its operator, the names that it reads (empty: left out), the names that it gives."""

_BLOCK = re.compile(r"^transformer_blocks\.(\d+)\.")
_SUM = "Add"


def block_starts(nodes: Sequence[Wires]) -> list[int]:
    """Indices of the first nodes of every transformer block, in order; a block is known by its weights' names."""
    begins: dict[int, int] = {}
    for index, (_, inputs, _) in enumerate(nodes):
        for name in inputs:
            if match := _BLOCK.match(name):
                begins.setdefault(int(match[1]), index)
    return sorted(begins.values())


def block_cuts(nodes: Sequence[Wires]) -> list[int]:
    """Indices of the nodes at which a part begins where every block is a part; the first has what lies before it."""
    return [0, *block_starts(nodes)[1:]]


def places(
    nodes: Sequence[Wires], given: Collection[str], cuts: Sequence[int], *, sums_to_readers: bool = False
) -> list[int]:
    """The part of every node: the one it lies in, with two exceptions.

    Nodes that read only what the caller gives go where they are first needed, so that the slices of the motion's
    bias, which stand at the beginning, are not all carried along.

    Args:
        nodes: in their order.
        given: names of inputs and weights.
        cuts: indices at which parts begin; the first is 0.
        sums_to_readers: a sum that its own part does not read goes to the first that does. onnxruntime makes one
            operator of a sum and the layer norm behind it; cut between them, they round otherwise, and the chain would
            not give the whole graph's numbers to the last bit. Twice as many values cross.
    """
    place = [sum(start <= index for start in cuts) - 1 for index in range(len(nodes))]
    known = {*given, ""}
    needed: dict[str, int] = {}
    for index in reversed(range(len(place))):
        operator, inputs, outputs = nodes[index]
        readers = [needed[name] for name in outputs if name in needed]
        if readers and (known.issuperset(inputs) or (sums_to_readers and operator == _SUM)):
            place[index] = max(place[index], min(readers))
        for name in inputs:
            needed[name] = min(needed.get(name, place[index]), place[index])
    return place
