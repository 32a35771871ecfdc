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

from livemoments.quantize.rewrite.graph_edit import GraphEditor, LastResult, Target
from livemoments.quantize.rewrite.round_weights import ChannelWeights, int8_channels

_FLOAT, _UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


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
    """Codes, scale and zero point of an input; the operation knows float32 only."""
    name = f"{target.name}.input"
    data = editor.cast(target.node, target.data, f"{name}.wide", _FLOAT, target.data)
    outputs = (
        ir.val(f"{name}.quantized", _UINT8, data.shape),
        ir.val(f"{name}.scale", _FLOAT),
        ir.val(f"{name}.zero", _UINT8),
    )
    editor.insert(target.node, "DynamicQuantizeLinear", [data], outputs)
    return outputs


def _product(editor: GraphEditor, target: Target, data: tuple[ir.Value, ...], memory: LastResult) -> ir.Value:
    linear, place, like = target.linear, target.node, target.node.outputs[0]
    name, columns = linear.id.weight, linear.out_features

    def result() -> ChannelWeights:
        return memory.of(name, lambda: int8_channels(target.read_weight()))

    values = editor.lazy(f"{name}.values", lambda: result().values, ir.DataType.INT8, (linear.in_features, columns))
    scale = editor.lazy(f"{name}.scale", lambda: result().scale, _FLOAT, (columns,))
    zero = editor.constant(f"{name}.zero", np.zeros(columns, np.int8))
    codes, input_scale, input_zero = data
    inputs = [codes, values, input_zero, zero]
    sums = editor.before(place, "MatMulInteger", inputs, f"{name}.sums", ir.DataType.INT32, like=like)
    wide = editor.cast(place, sums, f"{name}.float_sums", _FLOAT, like)
    both = editor.before(place, "Mul", [input_scale, scale], f"{name}.both_scales", _FLOAT)
    scaled = editor.before(place, "Mul", [wide, both], f"{name}.scaled", _FLOAT, like=like)
    return editor.cast(place, scaled, f"{name}.half", target.float_type, like)
