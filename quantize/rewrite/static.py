"""Static 8-bit linears: Q/DQ around the input, a dequantized 8-bit weight.

Requires: the targets' input ranges, from calibration.
Ensures: each target's product reads ``DequantizeLinear(QuantizeLinear(x))``, one pair for all linears that read x, and
``DequantizeLinear(8-bit weight)``, one scale per output channel. The product's result stays in floating point, so that
onnxruntime makes one integer product with float result of it; biases stay as they were.

Integer inputs are unsigned with a zero point (what VNNI multiplies), or int8 without one if the recipe is symmetric
(what TensorRT wants). With ``step_ranges`` the parameters are a table that ``step`` indexes, which onnxruntime fuses
all the same; zero points that are all 0 stay constants, without which TensorRT does not take them. In a float16 graph
the unsigned products are float32 between two casts: onnxruntime has no integer product with a float16 result, and would
dequantize every weight at every run.

E4M3, for tensor cores of Hopper and Ada, has no zero point either: the largest magnitude becomes 448. onnxruntime
computes it on a CPU too: exactly, but slowly, for checking.

Targets with a rotation multiply their input by a Hadamard matrix before it is quantized, and hold the rotated weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.graph_edit import GraphEditor, LastResult, Target, as_scale
from livemoments.quantize.rewrite.input_ranges import (
    INT8_MAX,
    StatsOf,
    input_range,
    symmetric_scale,
    unsigned_parameters,
)
from livemoments.quantize.rewrite.round_weights import E4M3_MAX, ChannelWeights, fp8_channels, int8_channels


def rewrite_static(
    model: ir.Model, targets: Sequence[Target], recipe: Recipe, stats: StatsOf | None, *, fp8: bool = False
) -> None:
    """Apply the rewrite, to int8 or to E4M3; ``model`` is changed in place."""
    editor, memory = GraphEditor(model), LastResult()
    steps = [value for value in model.graph.inputs if value.name == "step"] if recipe.step_ranges else []
    inputs: dict[tuple[str, int], ir.Value] = {}
    for target in targets:
        key, kind, place = (target.data.name or "", target.rotation), target.float_type, target.node
        wide = kind if fp8 or recipe.symmetric else ir.DataType.FLOAT
        if key not in inputs:
            low, high = input_range(stats, target.linear.id, per_point=bool(steps))
            inputs[key] = _quantized_input(editor, target, *_parameters(low, high, recipe, fp8), steps, wide)
        weight = _dequantized_weight(editor, target, memory, wide, fp8)
        if wide == kind:
            place.replace_input_with(0, inputs[key])
            place.replace_input_with(1, weight)
        else:
            like = place.outputs[0]
            product = editor.before(place, "MatMul", [inputs[key], weight], f"{target.name}.product", wide, like=like)
            editor.replace(place, editor.cast(place, product, f"{target.name}.narrow", kind, like))


def _parameters(low: np.ndarray, high: np.ndarray, recipe: Recipe, fp8: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales float32 and zero points, in the type to quantize to, for ranges (P,)."""
    if fp8:
        return symmetric_scale(low, high, E4M3_MAX), np.zeros(len(low), ml_dtypes.float8_e4m3fn)
    if recipe.symmetric:
        return symmetric_scale(low, high, INT8_MAX), np.zeros(len(low), np.int8)
    return unsigned_parameters(low, high)


def _quantized_input(
    editor: GraphEditor, target: Target, scale: np.ndarray, zero: np.ndarray, steps: list[ir.Value], kind: ir.DataType
) -> ir.Value:
    """Quantize a target's input and dequantize it again, in the float type ``kind``; a step picks among P scales."""
    name, place = f"{target.name}.input", target.node
    data = editor.rotated(place, target.data, name, target.rotation)
    data = editor.cast(place, data, f"{name}.wide", kind, data)
    arrays = {"scale": as_scale(scale, kind), "zero": zero}
    parameters = []
    for part, array in arrays.items():
        if not steps or not array.astype(np.float32).any():
            parameters.append(editor.constant(f"{name}.{part}", array[0]))
        else:
            table = editor.constant(f"{name}.{part}s", array)
            parameters.append(editor.before(place, "Gather", [table, *steps], f"{name}.{part}", table.dtype or kind))
    codes_type = ir.DataType.from_numpy(zero.dtype)
    codes = editor.before(place, "QuantizeLinear", [data, *parameters], f"{name}.quantized", codes_type, like=data)
    return editor.before(place, "DequantizeLinear", [codes, *parameters], f"{name}.dequantized", kind, like=data)


def _dequantized_weight(
    editor: GraphEditor, target: Target, memory: LastResult, kind: ir.DataType, fp8: bool
) -> ir.Value:
    """Store a target's weight quantized, one scale per output channel, and dequantize it in the float type ``kind``."""
    name, columns = target.linear.id.weight, (target.linear.out_features,)
    dtype = ir.DataType.FLOAT8E4M3FN if fp8 else ir.DataType.INT8

    def result() -> ChannelWeights:
        return memory.of(name, lambda: (fp8_channels if fp8 else int8_channels)(target.read_weight()))

    values = editor.lazy(f"{name}.values", lambda: result().values, dtype, (target.linear.in_features, *columns))
    scale = editor.lazy(f"{name}.scale", lambda: as_scale(result().scale, kind), kind, columns)
    zero = editor.constant(f"{name}.zero", np.zeros(columns, dtype.numpy()))
    inputs = [values, scale, zero]
    return editor.before(
        target.node, "DequantizeLinear", inputs, f"{name}.dequantized", kind, like=target.weight, axis=1
    )
