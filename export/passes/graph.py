"""Helpers that the graph passes share."""

from __future__ import annotations

import onnx_ir as ir


def count_initializers(model: ir.Model) -> int:
    """Elements of a graph's floating-point initializers."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(t.size for t in tensors if t is not None and t.dtype.is_floating_point())


def permutation(node: ir.Node | None) -> tuple[int, ...] | None:
    """The permutation of a Transpose node, ``None`` for any other."""
    if node is None or node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return None
    attribute = node.attributes.get("perm")
    return None if attribute is None else tuple(attribute.as_ints())


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a constant value: an initializer's or a Constant node's."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(int(n) for n in tensor.numpy().reshape(-1))


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, ``None`` when several do or the graph returns it."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None
