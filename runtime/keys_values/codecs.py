"""How reference keys and values are stored: exactly, in half precision, or in 8 bits with scales.

The 8-bit formats keep one scale per channel and block of 64 tokens (KIVI, Liu et al. 2024, groups keys so). Measured
on the ``mid`` checkpoint's tensors, signal to quantization noise of int8: 42.7 dB with a scale per token, 44.3 dB with
one per channel over all tokens, 47.3 dB per channel and block; with a few channels 20 times as large as the others
29.3, 43.9 and 47.1 dB. For E4M3, whose relative error hardly depends on the scale, the three are within 0.2 dB.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from livemoments.errors import UsageError

BLOCK_TOKENS = 64
"""Tokens that share a channel's scale. Its 4 bytes add 1/16 to an 8-bit format."""

_SCALE_ROWS = 4
"""A block's float32 scales, one per channel, fill this many rows of bytes."""
_E4M3_MAX = 448.0
_E4M3_BIAS = 7
_E4M3_NAN = 0x7F
_SIGN = 0x80


class Codec(Protocol):
    """How one array is stored. ``name`` is what ``--kv-dtype`` and cache keys call it."""

    name: str

    def encode(self, array: np.ndarray) -> np.ndarray:
        """The array as it is stored."""

    def decode(self, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The stored array in the dtype it came in."""

    def stored_bytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """Bytes of the stored form of an array of this shape and dtype."""


class NativeCodec:
    """Stores arrays as they are: exact."""

    name = "native"

    def encode(self, array: np.ndarray) -> np.ndarray:
        """The array itself."""
        return array

    def decode(self, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The stored array in the dtype it came in."""
        return stored.astype(dtype, copy=False)

    def stored_bytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """The array's own bytes."""
        return math.prod(shape) * dtype.itemsize


class Float16Codec:
    """Stores arrays in half precision: relative rounding error 2^-11; magnitudes past 65504 are clamped there."""

    name = "float16"

    def encode(self, array: np.ndarray) -> np.ndarray:
        """The array in float16, clamped to its range."""
        if array.dtype == np.float16:
            return array
        limit = float(np.finfo(np.float16).max)
        return np.clip(array, -limit, limit).astype(np.float16)

    def decode(self, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """The stored array in the dtype it came in."""
        return stored.astype(dtype, copy=False)

    def stored_bytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """Two bytes an element, or the array's own if they are fewer."""
        return math.prod(shape) * min(dtype.itemsize, 2)


class _BlockCodec(abc.ABC):
    """Bytes with a scale per channel and block of tokens.

    Arrays are (..., tokens S, channels D), floating point. The stored form is uint8, (..., S + 4 ceil(S / 64), D): the
    tokens' rows, then each block's float32 scales as rows of bytes, so that one array holds everything.
    """

    name: str
    _top: float
    """The largest magnitude that a byte can stand for."""

    def encode(self, array: np.ndarray) -> np.ndarray:
        *leading, tokens, channels = array.shape
        stored = np.empty((*leading, _stored_rows(tokens), channels), np.uint8)
        scales = _scales(stored, tokens)
        for number, rows in enumerate(_blocks(tokens)):
            block = array[..., rows, :].astype(np.float32, copy=False)
            largest = np.maximum(block.max(axis=-2), -block.min(axis=-2))
            # A channel of zeros keeps scale 0 and decodes to zeros. NaN and infinity decode to NaN, for the next
            # engine to report.
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                inverse = np.where(largest > 0, np.float32(self._top) / largest, np.float32(0))
                inverse = np.where(np.isinf(inverse), np.float32(0), inverse)  # subnormal channels become zeros
                scale = np.where(inverse > 0, largest / np.float32(self._top), np.float32(0))
                scale = np.where(np.isfinite(largest), scale, np.float32(np.nan))
                self._encode_block(block * inverse[..., None, :], stored[..., rows, :])
            scales[..., number, :, :] = _as_bytes(scale)
        return stored

    def decode(self, stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
        *leading, rows_stored, channels = stored.shape
        tokens = _tokens(rows_stored)
        array = np.empty((*leading, tokens, channels), dtype)
        scales = _scales(stored, tokens)
        for number, rows in enumerate(_blocks(tokens)):
            scale = _from_bytes(scales[..., number, :, :])[..., None, :]
            array[..., rows, :] = self._decode_block(stored[..., rows, :]) * scale
        return array

    def stored_bytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        *leading, tokens, channels = shape
        return math.prod(leading) * _stored_rows(tokens) * channels

    @abc.abstractmethod
    def _encode_block(self, scaled: np.ndarray, out: np.ndarray) -> None:
        """Write float32 numbers within ``_top`` as bytes."""

    @abc.abstractmethod
    def _decode_block(self, stored: np.ndarray) -> np.ndarray:
        """Bytes as float32."""


class Int8Codec(_BlockCodec):
    """Whole numbers from -127 to 127: an error of at most 1/254 of the block's largest magnitude in that channel."""

    name = "int8"
    _top = 127.0

    def _encode_block(self, scaled: np.ndarray, out: np.ndarray) -> None:
        out.view(np.int8)[...] = np.rint(scaled)

    def _decode_block(self, stored: np.ndarray) -> np.ndarray:
        return stored.view(np.int8).astype(np.float32)


class Fp8Codec(_BlockCodec):
    """E4M3: three bits of mantissa, a relative error of at most 1/16 over four orders of magnitude.

    Less exact than :class:`Int8Codec` where a channel's numbers are of similar size, more exact where most are far
    smaller than the largest. Numbers pass through float16 on their way, which moves ties by at most 2^-11.
    """

    name = "fp8"
    _top = _E4M3_MAX

    def _encode_block(self, scaled: np.ndarray, out: np.ndarray) -> None:
        np.take(_e4m3_of_half(), scaled.astype(np.float16).view(np.uint16), out=out, mode="clip")

    def _decode_block(self, stored: np.ndarray) -> np.ndarray:
        return np.take(e4m3_values(), stored, mode="clip")


@functools.cache
def e4m3_values() -> np.ndarray:
    """What the 256 bytes of E4M3 ("FN": no infinities, 0x7F is NaN) stand for, (256,) float32.

    Micikevicius et al., "FP8 Formats for Deep Learning" (2022), table 1.
    """
    code = np.arange(_SIGN)
    exponent, mantissa = code >> 3, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - _E4M3_BIAS)
    subnormal = mantissa / 8 * 2.0 ** (1 - _E4M3_BIAS)
    positive = np.where(exponent > 0, normal, subnormal)
    positive[_E4M3_NAN] = np.nan
    return np.concatenate([positive, -positive]).astype(np.float32)


@functools.cache
def _e4m3_of_half() -> np.ndarray:
    """The nearest E4M3 byte (ties to even, clamped to +-448) for each of the 65536 float16 bit patterns."""
    half = np.arange(1 << 15, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = e4m3_values()[:_E4M3_NAN]
    middles = (finite[1:] + finite[:-1]) / 2
    below, above = np.searchsorted(middles, half, "left"), np.searchsorted(middles, half, "right")
    nearest = np.where(below % 2 == 0, below, above).astype(np.uint8)  # they differ at ties; one of the two is even
    nearest[np.isnan(half)] = _E4M3_NAN
    return np.concatenate([nearest, nearest | _SIGN])


def _blocks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, BLOCK_TOKENS):
        yield slice(start, min(start + BLOCK_TOKENS, tokens))


def _stored_rows(tokens: int) -> int:
    return tokens + _SCALE_ROWS * -(-tokens // BLOCK_TOKENS)


def _tokens(stored_rows: int) -> int:
    """The inverse of :func:`_stored_rows`."""
    return stored_rows - _SCALE_ROWS * -(-stored_rows // (BLOCK_TOKENS + _SCALE_ROWS))


def _scales(stored: np.ndarray, tokens: int) -> np.ndarray:
    """The part of a stored array that holds the scales, (..., blocks, 4, D)."""
    *leading, _, channels = stored.shape
    return stored[..., tokens:, :].reshape(*leading, -1, _SCALE_ROWS, channels)


def _as_bytes(scale: np.ndarray) -> np.ndarray:
    """(..., D) float32 -> (..., 4, D) uint8, least significant byte first."""
    return np.moveaxis(scale.astype("<f4")[..., None].view(np.uint8), -1, -2)


def _from_bytes(planes: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_as_bytes`."""
    return np.ascontiguousarray(np.moveaxis(planes, -2, -1)).view("<f4")[..., 0].astype(np.float32, copy=False)


_CODECS: dict[str, Codec] = {codec.name: codec for codec in (NativeCodec(), Float16Codec(), Int8Codec(), Fp8Codec())}
KV_DTYPES = tuple(_CODECS)
"""The names of all codecs."""


def codec_for(codec: Codec, dtype: np.dtype) -> Codec:
    """The codec for arrays of a type: what engines give in 8 bits already (quantized bundles) is stored as it is."""
    return codec if dtype.kind == "f" else _CODECS[NativeCodec.name]


def find_codec(name: str) -> Codec:
    """The codec of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in _CODECS:
        raise UsageError(f"'{name}' is no storage format for keys and values", fix=f"use one of {', '.join(_CODECS)}")
    return _CODECS[name]
