"""Floating-point operations of a node: products as 2 a multiply-add, everything else as 1 a number written."""

from __future__ import annotations

import math
from typing import Literal

import onnx

from livemoments.profiles.planner.graph import CostGraph, Node, Tensor

Unit = Literal["fp32", "fp16", "int8", "fp8"]
"""In what a product is computed."""
_UNITS: dict[int, Unit] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
}
FREE = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant"})
"""Operators that move nothing: their output is their input's memory under another shape."""


def product_flops(node: Node, graph: CostGraph) -> int:
    """Operations of matrix products, convolutions and attention; 0 for everything else."""
    count = _PRODUCTS.get(node.op)
    return 0 if count is None else count(node, graph)


def other_ops(node: Node, graph: CostGraph) -> int:
    """Of everything that is no product: one a number written, and one a number read by reductions."""
    if node.op in _PRODUCTS or node.op in FREE:
        return 0
    written = sum(graph.tensors[name].elements for name in node.outputs if name)
    if node.op.startswith("Reduce") or node.op.endswith("Normalization") or node.op.endswith("Pool"):
        return max(written, _first(node, graph).elements)
    return written


def unit_of(node: Node, graph: CostGraph) -> Unit:
    """In what a node computes: its first input's type."""
    return _UNITS.get(_first(node, graph).dtype, "fp32")


def _first(node: Node, graph: CostGraph) -> Tensor:
    return graph.tensors[node.inputs[0]]


def _matmul(node: Node, graph: CostGraph) -> int:
    inner = _first(node, graph).shape[-1]
    return 2 * inner * graph.tensors[node.outputs[0]].elements


def _gemm(node: Node, graph: CostGraph) -> int:
    left = _first(node, graph).shape
    inner = left[0] if node.attributes.get("transA") else left[1]
    return 2 * inner * graph.tensors[node.outputs[0]].elements


def _conv(node: Node, graph: CostGraph) -> int:
    kernel = graph.tensors[node.inputs[_CONV_WEIGHT[node.op]]].shape  # (out, in / groups, kh, kw)
    return 2 * math.prod(kernel[1:]) * graph.tensors[node.outputs[0]].elements


def _attention(node: Node, graph: CostGraph) -> int:
    """Query and key (B, S, D) or (B, H, S, d): two products of S_q x S_k x D."""
    query, key, value = (graph.tensors[name] for name in node.inputs[:3])
    width = query.elements // query.shape[0] // query.shape[-2]
    width_v = value.elements // value.shape[0] // value.shape[-2]
    return 2 * query.shape[0] * query.shape[-2] * key.shape[-2] * (width + width_v)


def _nbits(node: Node, graph: CostGraph) -> int:
    return 2 * int(node.attributes["K"]) * graph.tensors[node.outputs[0]].elements


_CONV_WEIGHT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
_PRODUCTS = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _conv,
    "MultiHeadAttention": _attention,
    "Attention": _attention,
    "MatMulNBits": _nbits,
}
