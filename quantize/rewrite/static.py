"""Static 8-bit linears: Q/DQ around the input, a dequantized int8 weight.

Requires: the targets' input ranges, from calibration.
Ensures: each target's product reads ``DequantizeLinear(QuantizeLinear(x))``, one pair for all linears that read x, and
``DequantizeLinear(int8 weight)``, one scale per output channel. The product's result stays in floating point, so that
onnxruntime makes one integer product with float result of it; biases stay as they were.

Inputs are unsigned with a zero point (what VNNI multiplies), or int8 without one if the recipe is symmetric (what
TensorRT wants). With ``step_ranges`` the parameters are a table that ``step`` indexes, which onnxruntime fuses all the
same. In a float16 graph the unsigned products are float32 between two casts: onnxruntime has no integer product with a
float16 result, and would dequantize every weight at every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.graph_edit import (
    GraphEditor,
    LastResult,
    Target,
    add_channel_weight,
    add_quantize_pair,
    float_type,
    step_input,
)
from livemoments.quantize.rewrite.input_ranges import (
    INT8_MAX,
    StatsOf,
    input_range,
    symmetric_scale,
    unsigned_parameters,
)
from livemoments.quantize.rewrite.round_weights import int8_channels


def rewrite_static(model: ir.Model, targets: Sequence[Target], recipe: Recipe, stats: StatsOf | None) -> None:
    """Apply the rewrite; ``model`` is changed in place."""
    editor, memory = GraphEditor(model), LastResult()
    step = step_input(model) if recipe.step_ranges else None
    inputs: dict[str, ir.Value] = {}
    for target in targets:
        key, kind = target.data.name or "", float_type(target)
        wide = kind if recipe.symmetric else ir.DataType.FLOAT
        if key not in inputs:
            inputs[key] = _quantized_input(editor, target, recipe, stats, step, wide)
        weight = add_channel_weight(editor, target, memory, int8_channels, ir.DataType.INT8, kind=wide)
        if wide == kind:
            target.node.replace_input_with(0, inputs[key])
            target.node.replace_input_with(1, weight)
        else:
            _replace_between_casts(editor, target, inputs[key], weight, wide)


def _replace_between_casts(
    editor: GraphEditor, target: Target, data: ir.Value, weight: ir.Value, wide: ir.DataType
) -> None:
    kind, like = float_type(target), target.node.outputs[0]
    (product,) = editor.before(target.node, "MatMul", [data, weight], [f"{target.name}.product"], [wide], like=like)
    names = [f"{target.name}.narrow"]
    (narrow,) = editor.before(target.node, "Cast", [product], names, [kind], like=like, to=int(kind))
    editor.replace(target.node, narrow)


def _quantized_input(
    editor: GraphEditor,
    target: Target,
    recipe: Recipe,
    stats: StatsOf | None,
    step: ir.Value | None,
    kind: ir.DataType,
) -> ir.Value:
    low, high = input_range(stats, target.linear, per_point=step is not None)
    if recipe.symmetric:
        scale = symmetric_scale(low, high, INT8_MAX)
        zero = np.zeros(len(scale), np.int8)
    else:
        scale, zero = unsigned_parameters(low, high)
    return add_quantize_pair(editor, target, scale, zero, step, kind=kind)
