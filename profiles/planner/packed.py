"""A transformer's graph as a weight-only recipe would leave it: linears in 8 or 4 bits a weight, with a scale a block.

So that ``livemoments plan --recipe`` tells whether a bundle would fit before it is quantized. The products are counted
as they were: such recipes keep the activations' type between layers.
"""

from __future__ import annotations

import math

import onnx

from livemoments.profiles.planner.graph import CostGraph, Node, Tensor

RECIPES = {"int8-weights": 8, "int4-weights": 4}
"""Bits of a weight by recipe."""
BLOCK = 32
"""Weights that share a scale, and in 4 bits a zero point too (``block_size`` of both recipes; a test compares them)."""
_BLOCKS = "transformer_blocks."
_TYPES = {8: onnx.TensorProto.UINT8, 4: onnx.TensorProto.UINT4}


def as_packed(graph: CostGraph, bits: int) -> CostGraph:
    """The graph with the linears of its blocks packed.

    Args:
        graph: of a transformer that is not quantized.
        bits: 8 or 4.
    """
    tensors, weights, nodes = dict(graph.tensors), set(graph.weights), []
    for node in graph.nodes:
        if not (node.op in ("MatMul", "Gemm") and is_linear(node.inputs[1], graph)):
            nodes.append(node)
            continue
        weight = node.inputs[1]
        rows, columns = graph.tensors[weight].shape
        blocks = columns * math.ceil(rows / BLOCK)
        tensors[weight] = Tensor((columns, rows), _TYPES[bits])
        added = {f"{weight}\0scales": Tensor((blocks,), graph.tensors[node.inputs[0]].dtype)}
        if bits < 8:  # symmetric in 8
            added[f"{weight}\0zeros"] = Tensor((blocks,), _TYPES[bits])
        tensors |= added
        weights |= added.keys()
        attributes = {"K": rows, "N": columns, "bits": bits, "block_size": BLOCK}
        nodes.append(Node("MatMulNBits", (*node.inputs[:2], *added, *node.inputs[2:]), node.outputs, attributes))
    return CostGraph(tuple(nodes), tensors, graph.inputs, graph.outputs, frozenset(weights))


def is_linear(name: str, graph: CostGraph) -> bool:
    """Whether a tensor is the weight of a linear in a block: what weight-only recipes pack."""
    return name in graph.weights and name.startswith(_BLOCKS) and len(graph.tensors[name].shape) == len(("in", "out"))
