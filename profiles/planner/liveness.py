"""How much memory a graph's tensors need while it runs, by the rules of onnxruntime's sequential planner.

An output takes over an input's buffer where the operator only renames memory, or is elementwise and nobody reads that
input afterwards; else a buffer that is free and has the same shape; else a new one. A buffer is given back after its
last reader. One that will be taken over later is held meanwhile, which is why the peak exceeds the live tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from livemoments.profiles.planner.flops import FREE
from livemoments.profiles.planner.graph import CostGraph, Node

IN_PLACE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Relu", "Sigmoid", "Tanh", "Sqrt", "Reciprocal", "Exp"),
        *("Clip", "Neg", "Abs", "Floor", "Softmax", "LeakyRelu", "Erf"),
    }
)
"""Operators whose kernel may write over an input of the same shape."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """What :func:`lifetimes` found.

    Attributes:
        held_bytes: while each node runs: buffers and workspace, without weights and the graph's inputs.
        peak_bytes: the largest of these.
        peak_node: where that is.
        live_bytes: the peak of live tensors alone, each given back after its last reader: what a perfect allocator
            needs without in-place operators.
        block_bytes: of the one block in which all buffers lie from the second run on, holes included.
        workspace_bytes: the most that a kernel needs beside it.
        output_bytes: of the graph's outputs, which lie outside of that block.
    """

    held_bytes: tuple[int, ...]
    peak_bytes: int
    peak_node: int
    live_bytes: int
    block_bytes: int
    workspace_bytes: int
    output_bytes: int


@dataclass(slots=True)
class _Buffer:
    """Memory of one size: its readers that are still to come, and from when to when it is held."""

    shape: tuple[int, ...]
    bytes: int
    first: int
    readers: int = 0
    last: int = 0


@dataclass(slots=True)
class _Planner:
    graph: CostGraph
    buffers: list[_Buffer] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)

    def take_over(self, node: Node, number: int, position: int) -> int | None:
        """The buffer of an earlier tensor that an output may have."""
        wanted = self.graph.tensors[node.outputs[number]]
        if number == 0 and node.op in FREE:
            return self.place.get(node.inputs[0])
        if number == 0 and node.op in IN_PLACE:
            for name in node.inputs:
                found = self.place.get(name)
                if found is None or self.graph.tensors[name].shape != wanted.shape:
                    continue
                if self.buffers[found].readers == node.inputs.count(name):
                    return found
        for index in reversed(self.free):
            if self.buffers[index].shape == wanted.shape and self.buffers[index].bytes == wanted.bytes:
                self.free.remove(index)
                return index
        return None


def lifetimes(graph: CostGraph) -> Lifetimes:
    """Go through the graph once, in its order."""
    plan = _Planner(graph)
    readers: dict[str, int] = dict.fromkeys(graph.outputs, 1)  # an output is read by whoever called
    for node in graph.nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    for position, node in enumerate(graph.nodes):
        for number, name in enumerate(node.outputs):
            if not name:
                continue
            index = None if name in graph.outputs else plan.take_over(node, number, position)
            if index is None:
                tensor = graph.tensors[name]
                index = len(plan.buffers)
                plan.buffers.append(_Buffer(tensor.shape, tensor.bytes, position))
            plan.place[name] = index
            plan.buffers[index].readers += readers.get(name, 0)
            plan.buffers[index].last = position
        _release(plan, node, position)
    held = _held(plan, len(graph.nodes))
    work = [total + workspace_bytes(node, graph) for total, node in zip(held, graph.nodes, strict=True)]
    peak = max(work, default=0)
    kept = {plan.place[name] for name in graph.outputs if name in plan.place}
    return Lifetimes(
        held_bytes=tuple(work),
        peak_bytes=peak,
        peak_node=work.index(peak) if work else 0,
        live_bytes=_live_peak(graph),
        block_bytes=_one_block(plan, kept),
        workspace_bytes=max((workspace_bytes(node, graph) for node in graph.nodes), default=0),
        output_bytes=sum(graph.tensors[name].bytes for name in graph.outputs),
    )


def workspace_bytes(node: Node, graph: CostGraph) -> int:
    """What a kernel needs besides its inputs and outputs.

    Attention puts its heads side by side first; ``x * sigmoid(x)`` has a copy (measured: README of benchmarks).
    """
    if node.op == "QuickGelu":
        return graph.tensors[node.outputs[0]].bytes
    if node.op in ("MultiHeadAttention", "Attention"):
        return sum(graph.tensors[name].bytes for name in node.inputs[:3] if name)
    return 0


def moved_bytes(node: Node, graph: CostGraph) -> int:
    """What a node reads and writes, weights included; tables are read where they are looked up."""
    if node.op in FREE:
        return 0
    written = sum(graph.tensors[name].bytes for name in node.outputs if name)
    if node.op in ("Gather", "GatherElements", "Slice"):
        return 2 * written
    return written + sum(graph.tensors[name].bytes for name in dict.fromkeys(node.inputs) if name)


def _release(plan: _Planner, node: Node, position: int) -> None:
    """After a node: what it read last, and what nobody reads, is free to be taken over."""
    for name in node.inputs:
        if name in plan.place:
            buffer = plan.buffers[plan.place[name]]
            buffer.readers -= 1
            buffer.last = position
    touched = [name for name in (*node.inputs, *node.outputs) if name in plan.place]
    for index in dict.fromkeys(plan.place[name] for name in touched):
        if plan.buffers[index].readers == 0 and index not in plan.free:
            plan.free.append(index)


def _held(plan: _Planner, nodes: int) -> list[int]:
    """Bytes that are held while each node runs."""
    change = [0] * (nodes + 1)
    for buffer in plan.buffers:
        change[buffer.first] += buffer.bytes
        change[(nodes if buffer.readers else buffer.last + 1)] -= buffer.bytes
    held, total = [], 0
    for step in change[:nodes]:
        total += step
        held.append(total)
    return held


def _one_block(plan: _Planner, kept: set[int]) -> int:
    """Bytes of the block when each buffer, in the order of their beginnings, takes the tightest hole that it fits."""
    placed: list[tuple[int, int, int]] = []  # offset, end, until when
    size = 0
    for index, buffer in enumerate(plan.buffers):
        if index in kept or not buffer.bytes:
            continue
        placed = sorted(entry for entry in placed if entry[2] >= buffer.first)
        best, spare, cursor = None, 0, 0
        for start, end, _ in placed:
            hole = start - cursor
            if hole >= buffer.bytes and (best is None or hole - buffer.bytes < spare):
                best, spare = cursor, hole - buffer.bytes
            cursor = max(cursor, end)
        if best is None:
            best = cursor
        placed.append((best, best + buffer.bytes, buffer.last))
        size = max(size, best + buffer.bytes)
    return size


def _live_peak(graph: CostGraph) -> int:
    last: dict[str, int] = {}
    for position, node in enumerate(graph.nodes):
        for name in node.inputs:
            last[name] = position
    ends: dict[int, int] = {}
    total = peak = 0
    for position, node in enumerate(graph.nodes):
        for name in node.outputs:
            if name and node.op not in FREE:
                size = graph.tensors[name].bytes
                total += size
                end = len(graph.nodes) if name in graph.outputs else last.get(name, position)
                ends[end] = ends.get(end, 0) + size
        peak = max(peak, total)
        total -= ends.pop(position, 0)
    return peak
