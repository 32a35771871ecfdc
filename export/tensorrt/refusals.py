"""What the libraries cannot take, told from the graph alone: by PyTorch module, before anything is built.

Each rule was tried with TensorRT for RTX 1.7.1; the libraries' own words come late (some after minutes of building),
name a node and not the module, or are none (a process that dies).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from livemoments.engine_files import parse_sm
from livemoments.export.tensorrt.modules import ModuleNames

_STANDARD = ("", "ai.onnx")
_FP8 = ir.DataType.FLOAT8E4M3FN
_NEEDS_SM = {_FP8: (8, 9), ir.DataType.BFLOAT16: (8, 0)}
_QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, _FP8)
_TAKEN = (
    *_QUANTIZED,
    *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE),
    *(ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL),
)
_SAME_TYPES = ("Add", "Sub", "Mul", "Div", "Pow", "Concat", "MatMul", "Gemm", "Conv", "LayerNormalization", "Attention")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """One node that a library does not take.

    Attributes:
        module: the PyTorch module, under the checkpoint's names.
        operator: ONNX's name, with its domain where it is no standard one.
        reason: a clause.
    """

    module: str
    operator: str
    reason: str


def find_refusals(model: ir.Model, sm: Sequence[str]) -> list[Refusal]:
    """What is refused of a prepared graph.

    Args:
        model: of :func:`livemoments.export.tensorrt.prepare.prepare`.
        sm: compute capabilities to build for, e.g. ``("8.6", "12.0")``.
    """
    names = ModuleNames(model)
    found: dict[Refusal, None] = {}
    for node in model.graph.all_nodes():
        operator = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        for rule in _RULES:
            for reason in rule(node, sm):
                found[Refusal(names.of(node), operator, reason)] = None
    return list(found)


def _unknown_operator(node: ir.Node, _sm: Sequence[str]) -> Iterator[str]:
    if node.domain not in _STANDARD:
        yield "no standard operator; these libraries take standard ones only"


def _quantization(node: ir.Node, _sm: Sequence[str]) -> Iterator[str]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
        return
    zero = node.inputs[2]
    if zero is None:
        return
    tensor = ir.convenience.get_const_tensor(zero)
    if tensor is None:
        yield "its zero point is computed, and must be a constant; a scale for each timestep needs one that is 0"
    elif tensor.dtype in _QUANTIZED and bool((tensor.numpy().astype(float) != 0).any()):
        yield "its zero point is not 0; only symmetric ranges are taken"


def _types(node: ir.Node, sm: Sequence[str]) -> Iterator[str]:
    used = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None and value.dtype is not None}
    for dtype in sorted(used, key=str):
        if dtype not in _TAKEN:
            yield f"it works on {dtype.name}, a type that is not taken"
        least = _NEEDS_SM.get(dtype)
        if least and (below := [one for one in sm if parse_sm(one) < least]):
            yield f"it works on {dtype.name}, which SM {', '.join(below)} does not have (from {least[0]}.{least[1]} on)"


def _mixed_types(node: ir.Node, _sm: Sequence[str]) -> Iterator[str]:
    if node.op_type not in _SAME_TYPES or node.domain not in _STANDARD:
        return
    kinds = {value.dtype for value in node.inputs if value is not None and value.dtype in _FLOATS}
    if len(kinds) > 1:
        yield f"it mixes {' and '.join(sorted(kind.name for kind in kinds if kind is not None))}; networks are typed"


_RULES: tuple[Callable[[ir.Node, Sequence[str]], Iterator[str]], ...] = (
    _unknown_operator,
    _quantization,
    _types,
    _mixed_types,
)
