"""Attention whose operands are computed, not views: what Core AI's fused attention was reported to need.

On the GPU, fused attention was reported to give wrong values, silently, where an operand comes straight from a
transpose, as the split into heads does. ``contiguous()`` is no remedy: coreai-torch 0.4.3 drops the clone that it
becomes. So arithmetic that is needed anyway is put between the two: the scale, divided over queries and keys, and a
power of two on the values that the result undoes. Powers of two are exact in both precisions.

Whether a device's compiler moves a transpose back behind a multiplication was not seen: no device was at hand
(docs/coreai.md).
"""

from __future__ import annotations

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_MULTIPLY = torch.ops.aten.mul.Tensor
_KEY_FACTOR, _VALUE_FACTOR = 0.5, 2.0


def compute_operands(program: ExportedProgram) -> int:
    """Change every attention of an exported program, in place; beyond rounding it computes the same.

    Args:
        program: decomposed, with attention as one operator.

    Returns:
        How many there were.
    """
    graph = program.graph_module.graph
    found = [node for node in graph.nodes if node.target is _ATTENTION]
    for node in found:
        query, key, value = node.args[:3]
        assert isinstance(query, Node)
        assert isinstance(key, Node)
        assert isinstance(value, Node)
        scale = node.kwargs.get("scale") or 1 / math.sqrt(query.meta["val"].shape[-1])
        assert isinstance(scale, float)
        with graph.inserting_before(node):
            operands = (
                _scaled(query, scale / _KEY_FACTOR),
                _scaled(key, _KEY_FACTOR),
                _scaled(value, _VALUE_FACTOR),
            )
        with graph.inserting_after(node):
            undone = _scaled(node, 1 / _VALUE_FACTOR)
        node.replace_all_uses_with(undone, delete_user_cb=lambda user, undone=undone: user is not undone)
        node.args = (*operands, *node.args[3:])
        node.update_kwarg("scale", 1.0)
    program.graph_module.recompile()
    return len(found)


def _scaled(node: Node, factor: float) -> Node:
    product = node.graph.call_function(_MULTIPLY, (node, factor))
    product.meta["val"] = node.meta["val"]
    return product
