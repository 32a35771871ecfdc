"""Rotations before quantization: a Hadamard matrix spreads an outlier over a block of channels.

``x W = (x R) (R^T W)`` for an orthogonal R. With R block-diagonal, Sylvester's Hadamard matrix over sqrt(b) in every
block of b channels, one channel that is m times as large as the others becomes b channels that are m / sqrt(b) times as
large, whichever token or channel it appears in (S. Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated
LLMs", 2024). Widths here are no powers of two, so blocks are the largest power of two that divides them.

Attention's output is rotated for nothing: within each head R goes into the columns of the value projections and, as
R^T, into the rows of the output projections (attention mixes tokens, not channels). Layer norms that a table modulates,
and GELU, do not commute with R: the inputs of the other linears are rotated while the engine runs.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from livemoments.graphs.linears import LinearId

_WITHIN_HEADS = re.compile(r".*\.attn\.to_(?:add_)?out(?:\.0)?\.weight|attention\.\d+\.value|reference_v\.\d+")
_UNTOUCHED = re.compile(r"attention\.\d+\.(?:query|key)|reference_k\.\d+")


def is_within_heads(weight: str) -> bool:
    """Whether a linear's input, or an operand of attention, is rotated within heads, by weights alone."""
    return _WITHIN_HEADS.fullmatch(weight) is not None


def rotation_block(of: LinearId, width: int, head_dim: int, most: int) -> int:
    """Channels of a block in which an activation is rotated; 1: it is not.

    Args:
        of: the linear that reads it, or an operand of attention.
        width: its channels.
        head_dim: channels of a head.
        most: the recipe's ``rotation``; 0: none.
    """
    if not most or _UNTOUCHED.fullmatch(of.weight):
        return 1
    span = head_dim if is_within_heads(of.weight) else width
    return min(most, span & -span)


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
