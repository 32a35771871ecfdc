"""The recipes that ship with ``quantize/``, for rooms that name them without its extra."""

from __future__ import annotations

RECIPES = (
    "fp16",
    "int8",
    "int8-dynamic",
    "int8-weights",
    "int4-weights",
    "int8-tensorrt",
    "int8-tensorrt-mixed",
    "int8-rotated",
    "fp8",
    "fp8-mixed",
    "int8-weights-coreml",
    "int4-weights-coreml",
    "palette8-coreml",
    "palette6-coreml",
    "palette4-coreml",
    "int8-coreml",
)
"""In the order in which they are listed."""
