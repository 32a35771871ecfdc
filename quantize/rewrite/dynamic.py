"""Dynamic 8-bit linears: every run measures the input's range.

Requires: nothing of calibration.
Ensures: each target is ``MatMulInteger`` of ``DynamicQuantizeLinear(x)`` (one for all linears that read x) and an int8
weight with one scale per output channel, then converted and scaled; in front of the bias, so that onnxruntime makes
one operation of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from livemoments.quantize.rewrite.graph_edit import GraphEditor, LastResult, Target, float_type, read_weight
from livemoments.quantize.rewrite.round_weights import ChannelWeights, int8_channels

_FLOAT = ir.DataType.FLOAT


def rewrite_dynamic(model: ir.Model, targets: Sequence[Target]) -> None:
    """Apply the rewrite; ``model`` is changed in place."""
    editor, memory = GraphEditor(model), LastResult()
    inputs: dict[str, tuple[ir.Value, ...]] = {}
    for target in targets:
        key = target.data.name or ""
        if key not in inputs:
            inputs[key] = _measured_input(editor, target)
        editor.replace(target.node, _product(editor, target, inputs[key], memory))


def _measured_input(editor: GraphEditor, target: Target) -> tuple[ir.Value, ...]:
    """Codes, scale and zero point of an input."""
    name, data = f"{target.name}.input", target.data
    if float_type(target) != _FLOAT:  # the operation knows no other type
        (data,) = editor.before(target.node, "Cast", [data], [f"{name}.wide"], [_FLOAT], like=data, to=int(_FLOAT))
    names = [f"{name}.{part}" for part in ("quantized", "scale", "zero")]
    types = [ir.DataType.UINT8, _FLOAT, ir.DataType.UINT8]
    return tuple(editor.before(target.node, "DynamicQuantizeLinear", [data], names, types, like=data))


def _product(editor: GraphEditor, target: Target, data: tuple[ir.Value, ...], memory: LastResult) -> ir.Value:
    linear, weight, place = target.linear, target.weight, target.node
    name, kind, columns = linear.id.weight, float_type(target), linear.out_features

    def result() -> ChannelWeights:
        return memory.of(name, lambda: int8_channels(read_weight(weight)))

    values = editor.lazy(f"{name}.values", lambda: result().values, ir.DataType.INT8, (linear.in_features, columns))
    scale = editor.lazy(f"{name}.scale", lambda: result().scale, _FLOAT, (columns,))
    zero = editor.constant(f"{name}.zero", np.zeros(columns, np.int8))
    codes, input_scale, input_zero = data
    like = target.node.outputs[0]
    (sums,) = editor.before(
        place, "MatMulInteger", [codes, values, input_zero, zero], [f"{name}.sums"], [ir.DataType.INT32], like=like
    )
    (wide,) = editor.before(place, "Cast", [sums], [f"{name}.float_sums"], [_FLOAT], like=like, to=int(_FLOAT))
    (both,) = editor.before(place, "Mul", [input_scale, scale], [f"{name}.both_scales"], [_FLOAT])
    (scaled,) = editor.before(place, "Mul", [wide, both], [f"{name}.scaled"], [_FLOAT], like=like)
    if kind != _FLOAT:
        (scaled,) = editor.before(place, "Cast", [scaled], [f"{name}.half"], [kind], like=like, to=int(kind))
    return scaled
