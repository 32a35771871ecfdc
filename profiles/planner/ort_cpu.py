"""A graph as onnxruntime's CPU provider rewrites it, as far as that changes what lies in memory.

Convolutions in float32 whose output channels fill a block run in a blocked layout (NCHWc): what comes from another
layout is reordered into a copy, and back for whoever reads it otherwise; an activation behind a convolution and a sum
that has no other reader become part of it. ``x * sigmoid(x)`` becomes one operator.
"""

from __future__ import annotations

import onnx

from livemoments.profiles.planner.graph import CostGraph, Node, Tensor

_BLOCK = 8  # channels of a block with AVX2; 16 with AVX512, which every multiple in our networks fits as well
_FUSED = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip")


def as_ort_runs_it(graph: CostGraph) -> CostGraph:
    """The graph with fused and added nodes; weights and outputs are the same."""
    return _blocked(_quick_gelu(graph))


def _readers(graph: CostGraph) -> dict[str, int]:
    count: dict[str, int] = dict.fromkeys(graph.outputs, 1)
    for node in graph.nodes:
        for name in node.inputs:
            count[name] = count.get(name, 0) + 1
    return count


def _quick_gelu(graph: CostGraph) -> CostGraph:
    readers = _readers(graph)
    sigmoids = {
        node.outputs[0]: node.inputs[0]
        for node in graph.nodes
        if node.op == "Sigmoid" and readers.get(node.outputs[0]) == 1
    }
    nodes, gone = [], set()
    for node in graph.nodes:
        if node.op == "Mul" and len(node.inputs) == 2:
            for one, other in (node.inputs, node.inputs[::-1]):
                if sigmoids.get(other) == one:
                    gone.add(other)
                    nodes.append(Node("QuickGelu", (one,), node.outputs, {}))
                    break
            else:
                nodes.append(node)
        else:
            nodes.append(node)
    kept = tuple(node for node in nodes if not (node.op == "Sigmoid" and node.outputs[0] in gone))
    return CostGraph(kept, graph.tensors, graph.inputs, graph.outputs, graph.weights)


def _blocked(graph: CostGraph) -> CostGraph:
    tensors: dict[str, Tensor] = dict(graph.tensors)
    readers = _readers(graph)
    inside: dict[str, str] = {}  # a tensor to its blocked twin
    plain: set[str] = set(graph.inputs) | set(graph.weights)
    nodes: list[Node] = []

    def blocked_of(name: str) -> str:
        if name not in inside:
            inside[name] = f"{name}\0in"
            tensors[inside[name]] = tensors[name]
            nodes.append(Node("ReorderInput", (name,), (inside[name],), {}))
        return inside[name]

    def plain_of(name: str) -> str:
        if name in inside and name not in plain:
            plain.add(name)
            nodes.append(Node("ReorderOutput", (inside[name],), (name,), {}))
        return name

    def emit(op: str, inputs: tuple[str, ...], output: str, node: Node) -> None:
        twin = f"{output}\0out"
        tensors[twin] = tensors[output]
        inside[output] = twin
        nodes.append(Node(op, inputs, (twin,), node.attributes))

    for node in graph.nodes:
        first = node.inputs[0] if node.inputs else ""
        if _runs_blocked(node, graph):
            channels = graph.tensors[first].shape[1]
            source = blocked_of(first) if channels % _BLOCK == 0 else plain_of(first)
            emit("Conv", (source, *node.inputs[1:]), node.outputs[0], node)
        elif node.op in _FUSED and first in inside and first not in plain and readers[first] == 1:
            inside[node.outputs[0]] = inside[first]
        elif _is_sum(node, inside, plain):
            one, other = node.inputs
            emit("Add", (inside[one], inside[other]), node.outputs[0], node)
        else:
            for name in node.inputs:
                if name:
                    plain_of(name)
            nodes.append(node)
            plain.update(node.outputs)
    for name in graph.outputs:
        plain_of(name)
    return CostGraph(tuple(nodes), tensors, graph.inputs, graph.outputs, graph.weights)


def _runs_blocked(node: Node, graph: CostGraph) -> bool:
    if node.op != "Conv":
        return False
    weight = graph.tensors[node.inputs[1]]
    return weight.dtype == onnx.TensorProto.FLOAT and len(weight.shape) == 4 and weight.shape[0] % _BLOCK == 0


def _is_sum(node: Node, inside: dict[str, str], plain: set[str]) -> bool:
    """Whether a sum's addends are both blocked, one of them nowhere else yet."""
    if node.op != "Add" or not all(name in inside for name in node.inputs):
        return False
    return any(name not in plain for name in node.inputs)
