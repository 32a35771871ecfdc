"""FP8 linears: Q/DQ in E4M3 around the input and the weight, for tensor cores of Hopper and Ada.

Requires: the targets' input ranges, from calibration.
Ensures: each target's product reads ``DequantizeLinear(QuantizeLinear(x))`` with one constant scale for all steps (the
largest magnitude becomes 448; TensorRT takes no other), and ``DequantizeLinear(E4M3 weight)``, one scale per output.

onnxruntime computes it on a CPU too: exactly, but slowly, for checking.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from livemoments.quantize.rewrite.graph_edit import (
    GraphEditor,
    LastResult,
    Target,
    add_channel_weight,
    add_quantize_pair,
)
from livemoments.quantize.rewrite.input_ranges import StatsOf, input_range, symmetric_scale
from livemoments.quantize.rewrite.round_weights import E4M3_MAX, fp8_channels


def rewrite_fp8(model: ir.Model, targets: Sequence[Target], stats: StatsOf | None) -> None:
    """Apply the rewrite; ``model`` is changed in place."""
    editor, memory = GraphEditor(model), LastResult()
    inputs: dict[str, ir.Value] = {}
    for target in targets:
        key = target.data.name or ""
        if key not in inputs:
            scale = symmetric_scale(*input_range(stats, target.linear, per_point=False), E4M3_MAX)
            inputs[key] = add_quantize_pair(editor, target, scale, np.zeros(1, ml_dtypes.float8_e4m3fn), None)
        weight = add_channel_weight(editor, target, memory, fp8_channels, ir.DataType.FLOAT8E4M3FN)
        target.node.replace_input_with(0, inputs[key])
        target.node.replace_input_with(1, weight)
