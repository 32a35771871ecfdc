"""Rotations before quantization: a Hadamard matrix spreads an outlier over a block of channels.

``x W = (x R) (R^T W)`` for an orthogonal R. With R block-diagonal, Sylvester's Hadamard matrix over sqrt(b) in every
block of b channels, one channel that is m times as large as the others becomes b channels that are m / sqrt(b) times as
large, whichever token or channel it appears in (S. Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated
LLMs", 2024). Widths here are no powers of two, so a block is at most the largest power of two that divides them.

R^T goes into the weights. R cannot: layer norms that a table modulates, and GELU, do not commute with it, so inputs are
rotated while the engine runs. (Attention's output could be rotated by the weights of its values, within heads; it is
not, since RestorationNet reads ReferenceNet's values, and they would no longer be what upstream computes.)
"""

from __future__ import annotations

import functools

import numpy as np

from livemoments.graphs.linears import LinearId
from livemoments.graphs.operands import is_operand


def rotation_block(of: LinearId, width: int, most: int) -> int:
    """Channels of a block in which an activation is rotated; 1: it is not.

    Args:
        of: the linear that reads it; attention's operands, keys and values are not rotated.
        width: its channels.
        most: the recipe's ``rotation``; 0: none.
    """
    return 1 if not most or is_operand(of.weight) else min(most, width & -width)


@functools.cache
def hadamard(size: int) -> np.ndarray:
    """Sylvester's Hadamard matrix over sqrt(size), (size, size) float64: symmetric and its own inverse.

    Args:
        size: a power of two.
    """
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)


def rotate(values: np.ndarray, block: int, axis: int = -1) -> np.ndarray:
    """Values rotated along an axis, in blocks that divide its length; the type stays."""
    if block == 1:
        return values
    moved = np.moveaxis(values, axis, -1)
    mixed = moved.reshape(*moved.shape[:-1], -1, block) @ hadamard(block).astype(values.dtype)
    return np.moveaxis(mixed.reshape(moved.shape), -1, axis)
