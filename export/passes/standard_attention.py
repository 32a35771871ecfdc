"""Rewrite onnxruntime's ``com.microsoft.MultiHeadAttention`` to the standard ``Attention``: undoes ``fuse_attention``.

TensorRT fuses the standard operation of opset 23 where it has exactly one output; onnxruntime's own it takes in some
releases only. A bundle that was exported, or quantized, for onnxruntime is so built from without another export.

Requires: MultiHeadAttention nodes whose query, key and value are (B, S, D) each, without masks, biases or caches.
Ensures: each is one Attention on (B, heads, S, D / heads), exact to rounding, which keeps its name and its module, and
pairs that quantize its operands with one scale stand directly in front of it; others are left and counted in the note.
"""

from __future__ import annotations

import onnx_ir as ir

from livemoments.export.passes.fuse_attention import DOMAIN
from livemoments.export.passes.graph import count_initializers
from livemoments.export.passes.report import PassReport

NAME = "standard_attention"
OP = "MultiHeadAttention"
_OPSET = 23
_SWAP_HEADS = (0, 2, 1, 3)


def standard_attention(model: ir.Model) -> PassReport:
    """Apply the pass; ``model`` is changed in place.

    Raises:
        ValueError: the graph's opset has no Attention.
    """
    count = count_initializers(model)
    found = [node for node in model.graph if node.op_type == OP and node.domain == DOMAIN]
    if found and model.graph.opset_imports.get("", 0) < _OPSET:
        raise ValueError(f"opset {model.graph.opset_imports.get('')} has no Attention; {_OPSET} has")
    plain = [node for node in found if all(value is None for value in node.inputs[3:])]
    for node in plain:
        _unfuse(model, node)
    if plain and not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.graph.opset_imports.pop(DOMAIN, None)
    note = f"{len(plain)} of {len(found)} attentions became standard ones"
    return PassReport(NAME, bool(plain), count, count_initializers(model), note)


def _unfuse(model: ir.Model, node: ir.Node) -> None:
    heads = node.attributes["num_heads"].as_int()
    scale = node.attributes.get_float("scale")
    label = node.name or node.outputs[0].name or OP
    result = node.outputs[0]
    split = _shape(model, f"{label}.split", (0, 0, heads, -1))
    merge = _shape(model, f"{label}.merge", (0, 0, -1))
    new: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value | None], name: str, *attributes: ir.Attr) -> ir.Value:
        made = ir.Node("", op_type, inputs, list(attributes), num_outputs=1, name=name)
        made.metadata_props.update(node.metadata_props)
        made.outputs[0].name, made.outputs[0].type = name, result.type
        new.append(made)
        return made.outputs[0]

    swap = ir.AttrInt64s("perm", _SWAP_HEADS)
    parts: list[ir.Value | None] = []
    moved_pairs: list[ir.Node] = []
    for part, value in zip(("query", "key", "value"), node.inputs[:3], strict=True):
        tokens, pair = _quantization(value)
        whole = add("Reshape", [tokens, split], f"{label}.{part}.split")
        moved = add("Transpose", [whole], f"{label}.{part}", swap)
        for step in pair:
            moved = add(step.op_type, [moved, *step.inputs[1:]], f"{label}.{part}.{step.op_type}")
            moved.type = step.outputs[0].type
        parts.append(moved)
        moved_pairs += reversed(pair)
    attention = add("Attention", parts, label, *([] if scale is None else [ir.AttrFloat32("scale", scale)]))
    attention.name = f"{label}.heads"
    back = add("Transpose", [attention], f"{label}.back", swap)
    merged = add("Reshape", [back, merge], f"{label}.merged")
    merged.shape = result.shape
    model.graph.insert_before(node, new)
    name = result.name
    ir.convenience.replace_all_uses_with(result, merged, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    for old in moved_pairs:
        if not any(output.uses() for output in old.outputs):  # other readers keep theirs
            model.graph.remove(old, safe=True)
    merged.name = name


def _quantization(value: ir.Value | None) -> tuple[ir.Value | None, tuple[ir.Node, ...]]:
    """What a value was before a pair with one scale quantized it, and the pair; itself without one."""
    wide = value.producer() if value is not None else None
    codes = wide.inputs[0] if wide is not None and wide.op_type == "DequantizeLinear" else None
    narrow = codes.producer() if codes is not None else None
    if wide is None or narrow is None or narrow.op_type != "QuantizeLinear" or "axis" in narrow.attributes:
        return value, ()
    return narrow.inputs[0], (narrow, wide)


def _shape(model: ir.Model, name: str, shape: tuple[int, ...]) -> ir.Value:
    tensor = ir.tensor(list(shape), dtype=ir.DataType.INT64, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(shape)]), const_value=tensor)
    model.graph.register_initializer(value)
    return value
