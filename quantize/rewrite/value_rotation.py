"""Rotate values within heads, by weights alone: what enters the output projections of attention has no outliers then.

Requires: a float graph of a bundle, layout ``per-block``. RestorationNet reads ReferenceNet's values, so either both
networks are rewritten or neither.
Ensures: the same velocity and the same keys; ``reference_v.N`` are rotated; changed tensors are lazy.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from livemoments.graphs.tensors import read_tensor
from livemoments.quantize.rotation import rotate

_COLUMNS = re.compile(r".*\.attn\.(?:to_v|add_v_proj)\.(?:weight|bias)|.*\.text\.v")
_ROWS = re.compile(r".*\.attn\.to_(?:add_)?out(?:\.0)?\.weight")


def rotate_values(model: ir.Model, block: int) -> int:
    """Apply the rewrite; ``model`` is changed in place.

    Args:
        model: ReferenceNet's or RestorationNet's graph.
        block: divides the width of a head.

    Returns:
        How many tensors were changed.
    """
    changed = 0
    for name, value in model.graph.initializers.items():
        axis = -1 if _COLUMNS.fullmatch(name) else 0 if _ROWS.fullmatch(name) else None
        if axis is not None and value.const_value is not None:
            value.const_value = _rotated(value.const_value, name, block, axis)
            changed += 1
    return changed


def _rotated(stored: ir.TensorProtocol, name: str, block: int, axis: int) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        array = read_tensor(stored)
        return ir.tensor(rotate(array.astype(np.float64), block, axis).astype(array.dtype), name=name)

    return ir.LazyTensor(read, dtype=stored.dtype, shape=ir.Shape(stored.shape.numpy()), name=name)
