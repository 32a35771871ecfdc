"""Weights in 8 and 4 bits: one matrix in, its quantized form out. Pure numpy, deterministic.

A weight is (K, N): K inputs, N outputs, as a graph's ``MatMul`` reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

INT8_MAX = 127
"""Symmetric int8 leaves -128 out."""
E4M3_MAX = 448.0
"""The largest finite E4M3 value (Micikevicius et al., "FP8 formats for deep learning", 2022, table 1)."""
_CHUNK_ELEMENTS = 1 << 21  # blocks are optimised in pieces of 8 MiB, so that temporaries stay in the cache
_HQQ_ROUNDS = 6
_HQQ_BETA = 10.0
"""Initial weight of the splitting term, relative to the blocks' steps; grows by ``_HQQ_GROWTH`` each round."""
_HQQ_GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class ChannelWeights:
    """A weight with one scale per output: ``weight ~ values * scale``.

    Attributes:
        values: (K, N) int8 or float8_e4m3fn.
        scale: (N,) float32.
    """

    values: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """A weight whose blocks of ``block_size`` inputs share scale and zero point, packed as ``MatMulNBits`` reads it.

    Attributes:
        values: (N, blocks, block_size * bits / 8) uint8; of two 4-bit values the first is in the low half.
        scale: (N, blocks) float32.
        zero: (N, ceil(blocks * bits / 8)) uint8, packed the same way.
        bits: 4 or 8.
        block_size: inputs per block; the last block is padded with zeros.
        inputs: K.
    """

    values: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int
    block_size: int
    inputs: int


def int8_channels(weight: np.ndarray) -> ChannelWeights:
    """Symmetric int8, one scale per output channel (the largest magnitude becomes 127)."""
    values, scale = _by_channel(weight, INT8_MAX)
    return ChannelWeights(np.clip(np.rint(values), -INT8_MAX, INT8_MAX).astype(np.int8), scale)


def fp8_channels(weight: np.ndarray) -> ChannelWeights:
    """E4M3, one scale per output channel (the largest magnitude becomes 448)."""
    values, scale = _by_channel(weight, E4M3_MAX)
    return ChannelWeights(np.clip(values, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn), scale)


def _by_channel(weight: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """The weight over its channels' scales, and these: the largest magnitude becomes ``top``."""
    scale = _positive(np.abs(weight).max(axis=0).astype(np.float32) / np.float32(top))
    return weight.astype(np.float32) / scale, scale


def quantize_blocks(
    weight: np.ndarray,
    *,
    bits: int,
    block_size: int,
    symmetric: bool = False,
    method: str = "rtn",
    importance: np.ndarray | None = None,
) -> BlockWeights:
    """Quantize in blocks along the inputs.

    ``rtn`` lets scale and zero point span the block's values (and 0). ``hqq`` starts there and improves both by
    half-quadratic splitting (Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023):
    the largest errors are split off with a sparsity-promoting penalty (p = 1/2) before the zero point is solved for;
    beyond that paper the scale is solved for too, zero points stay integers, which is what engines are fast with, and
    every block keeps the best (scale, zero point) it has met, so no block is worse than with ``rtn``.

    Args:
        weight: (K, N).
        bits: 4 or 8.
        block_size: even.
        symmetric: the zero point is the middle, ``2 ** (bits - 1)``.
        method: ``rtn`` or ``hqq``.
        importance: (K,) weights of the squared error, the inputs' mean squares; ``None``: all equal.
    """
    inputs, outputs = weight.shape
    blocks = -(-inputs // block_size)
    padded = np.zeros((outputs, blocks * block_size), np.float32)
    padded[:, :inputs] = weight.T
    grouped = padded.reshape(outputs, blocks, block_size)
    mass = np.zeros(blocks * block_size, np.float32)
    mass[:inputs] = 1.0 if importance is None else _normalised(importance)
    mass = mass.reshape(1, blocks, block_size)
    values = np.empty(grouped.shape, np.uint8)
    scale = np.empty((outputs, blocks), np.float32)
    zero = np.empty((outputs, blocks), np.uint8)
    rows = max(1, _CHUNK_ELEMENTS // (blocks * block_size))
    for start in range(0, outputs, rows):
        part = slice(start, start + rows)
        piece = grouped[part]
        s, z = _span(piece, bits, symmetric)
        if method == "hqq":
            s, z = _half_quadratic(piece, s, z, mass, bits, symmetric)
        values[part] = _codes(piece, s, z, bits)
        scale[part], zero[part] = s[..., 0], z[..., 0]
    packed = _pack(values.reshape(outputs, -1), bits).reshape(outputs, blocks, -1)
    return BlockWeights(packed, scale, _pack(zero, bits), bits, block_size, inputs)


def _positive(scale: np.ndarray) -> np.ndarray:
    """Scales of all-zero channels become 1: their values are 0 with any."""
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def _normalised(importance: np.ndarray) -> np.ndarray:
    mean = float(importance.mean())
    return (importance / mean if mean > 0 else np.ones_like(importance)).astype(np.float32)


def _span(grouped: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point (N, blocks, 1) that span each block's values and 0."""
    top = np.float32((1 << bits) - 1)
    if symmetric:
        middle = np.float32(1 << (bits - 1))
        scale = _positive(np.abs(grouped).max(axis=-1, keepdims=True) / (middle - 1))
        return scale, np.full_like(scale, middle)
    low = np.minimum(grouped.min(axis=-1, keepdims=True), 0)
    high = np.maximum(grouped.max(axis=-1, keepdims=True), 0)
    scale = _positive((high - low) / top)
    return scale, np.clip(np.rint(-low / scale), 0, top)


def _codes(grouped: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    codes = np.rint(grouped / scale)
    codes += zero
    return np.clip(codes, 0, (1 << bits) - 1, out=codes)


def _half_quadratic(
    grouped: np.ndarray, scale: np.ndarray, zero: np.ndarray, mass: np.ndarray, bits: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Improve scale and zero point; see :func:`quantize_blocks`."""
    best_scale, best_zero = scale, zero
    best = np.full_like(scale, np.inf)
    total = mass.sum(axis=-1, keepdims=True)
    total = np.where(total > 0, total, 1)
    top = np.float32((1 << bits) - 1)
    beta = _HQQ_BETA
    for _ in range(_HQQ_ROUNDS):
        steps = _codes(grouped, scale, zero, bits) - zero
        error = grouped - steps * scale
        loss = (mass * error * error).sum(axis=-1, keepdims=True)
        better = loss < best
        best = np.where(better, loss, best)
        best_scale, best_zero = np.where(better, scale, best_scale), np.where(better, zero, best_zero)
        # least squares for the scale, with the codes as they are; a block whose codes are all 0 keeps its scale
        energy = (mass * steps * steps).sum(axis=-1, keepdims=True)
        solved = (mass * steps * grouped).sum(axis=-1, keepdims=True) / np.where(energy > 0, energy, 1)
        next_scale = np.where(solved > 0, solved, scale).astype(np.float32)
        if not symmetric:
            magnitude = np.abs(error) / scale
            # the proximal step of |e|^(1/2) / beta: small errors vanish, large ones are split off
            kept = magnitude - 0.5 / (beta * np.sqrt(np.maximum(magnitude, 1e-6)))
            split = np.sign(error) * np.maximum(kept, 0) * scale
            shift = (mass * (steps + zero - (grouped - split) / next_scale)).sum(axis=-1, keepdims=True) / total
            zero = np.clip(np.rint(shift), 0, top).astype(np.float32)
        scale = next_scale
        beta *= _HQQ_GROWTH
    return best_scale, best_zero


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    """(rows, n) of small integers to (rows, ceil(n * bits / 8)) uint8."""
    if bits == 8:
        return values.astype(np.uint8)
    even = np.pad(values, ((0, 0), (0, values.shape[1] % 2))).astype(np.uint8)
    return even[:, 0::2] | (even[:, 1::2] << 4)
