"""8-bit attention operands, and keys and values that pass from network to network in int8.

Requires: the ranges of attention's operands and of the keys and values, from calibration; a float32 or float16 graph
whose linears may be quantized already.
Ensures: :func:`quantize_operands`: each attention whose heads are a multiple of 16 wide reads Q/DQ pairs with one
constant scale each, directly in front of it. Softmax's result stays in floating point: inside of one operator a graph
has no place for its scale. :func:`quantize_keys_values`: ReferenceNet's keys and values end in ``QuantizeLinear`` and
RestorationNet's begin with ``DequantizeLinear``, with the same scale per channel; the tensors are int8 in both graphs.

The scales of keys and values hold for all points of the schedule: a policy may read them at another one than they were
computed at. They are int8 for E4M3 recipes too: as exact as E4M3 or better at the same size, and numpy has the type.
"""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from livemoments.graphs.operands import find_keys_values, find_operands
from livemoments.quantize.rewrite.graph_edit import GraphEditor, as_scale
from livemoments.quantize.rewrite.input_ranges import INT8_MAX, StatsOf, input_range, observed_stats, symmetric_scale
from livemoments.quantize.rewrite.round_weights import E4M3_MAX
from livemoments.types import Stage, TensorSpec, is_keys_values

HEAD_MULTIPLE = 16
"""TensorRT's 8-bit attention kernels take heads of a multiple of this width."""
_CHANNELS = 2
"""The axis of (B, S, D) that has a scale each."""


def quantize_operands(model: ir.Model, stage: Stage, stats: StatsOf | None, *, fp8: bool = False) -> int:
    """Apply the rewrite; ``model`` is changed in place.

    Returns:
        How many attentions were quantized; those with narrower heads are left.

    Raises:
        UsageError: the calibration does not have an operand.
    """
    editor = GraphEditor(model)
    top, dtype = (E4M3_MAX, ml_dtypes.float8_e4m3fn) if fp8 else (INT8_MAX, np.int8)
    codes_type = ir.DataType.from_numpy(np.dtype(dtype))
    nodes = set()
    for operand in find_operands(model, str(stage)):
        data = operand.node.inputs[operand.place]
        if operand.head_dim % HEAD_MULTIPLE or data is None or data.dtype is None:
            continue
        name, kind = operand.id.weight, data.dtype
        scale = as_scale(symmetric_scale(*input_range(stats, operand.id, per_point=False), top), kind)
        parameters = [
            editor.constant(f"{name}.scale", scale.reshape(())),
            editor.constant(f"{name}.zero", np.zeros((), dtype)),
        ]
        place = operand.node
        codes = editor.before(place, "QuantizeLinear", [data, *parameters], f"{name}.quantized", codes_type, like=data)
        wide = editor.before(place, "DequantizeLinear", [codes, *parameters], f"{name}.dequantized", kind, like=data)
        place.replace_input_with(operand.place, wide)
        nodes.add(place)
    return len(nodes)


def quantize_keys_values(model: ir.Model, stage: Stage, stats: StatsOf | None) -> None:
    """Apply the rewrite to a graph of the layout ``per-block``; ``model`` is changed in place.

    Raises:
        UsageError: the calibration does not have one of them.
    """
    editor = GraphEditor(model)
    for each in find_keys_values(model, str(stage)):
        value, kind, name = each.tokens, each.tokens.dtype, each.id.weight
        assert kind is not None, f"'{name}' has no type"
        most = observed_stats(stats, each.id).channel_absmax
        scale = editor.constant(f"{name}.scale", as_scale(symmetric_scale(-most, most, INT8_MAX), kind))
        zero = editor.constant(f"{name}.zero", np.zeros(each.width, np.int8))
        if stage is Stage.REFERENCE:
            codes = ir.val(f"{name}.codes", ir.DataType.INT8, value.shape)
            _append(model, "QuantizeLinear", [value, scale, zero], codes)
            model.graph.outputs[model.graph.outputs.index(value)] = codes
            value.name, codes.name = f"{name}.exact", name
        else:
            wide = ir.val(f"{name}.dequantized", kind, value.shape)
            ir.convenience.replace_all_uses_with(value, wide)
            editor.insert(model.graph[0], "DequantizeLinear", [value, scale, zero], [wide], axis=_CHANNELS)
            value.type = ir.TensorType(ir.DataType.INT8)


def int8_keys_values(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs of inputs or outputs after :func:`quantize_keys_values`."""
    return tuple(TensorSpec(spec.name, "int8", spec.shape) if is_keys_values(spec.name) else spec for spec in specs)


def _append(model: ir.Model, op: str, inputs: list[ir.Value], output: ir.Value) -> None:
    model.graph.append(ir.node(op, inputs, {"axis": _CHANNELS}, outputs=[output], name=f"{output.name}.node"))
