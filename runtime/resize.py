"""Images seen through windows: bicubic resizing and padding evaluated only where they are looked at.

A 3072 x 4096 photo is 151 MB as float32 and its padded copy 228 MB; restoring one needs four such images. A view keeps
the small (or 8-bit) source and computes the window that a tile asks for.

The arithmetic is that of ``torch.nn.functional.interpolate(mode="bicubic", align_corners=False, size=...)`` in
float32: a = -0.75, half-pixel centres, no antialiasing, border pixels replicated. It is elementwise throughout, so a
window equals the same part of the whole image bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from livemoments.errors import UsageError
from livemoments.types import Size

FloatArray: TypeAlias = npt.NDArray[np.float32]
Padding: TypeAlias = Literal["reflect", "zero", "edge"]

_CUBIC_A = np.float32(-0.75)
# Rows that are summed at once: (64, 1024, 3) float32 is 786 kB, which stays in a core's second-level cache.
_BLOCK_ROWS = 64


def pad_indices(start: int, count: int, length: int, padding: Padding) -> npt.NDArray[np.int64]:
    """Map positions ``start .. start + count`` of a padded axis to positions of the axis itself.

    Args:
        start: the first position; negative lies before the axis.
        count: how many positions.
        length: the axis' length.
        padding: ``reflect`` mirrors without repeating the edge, as ``torch.nn.functional.pad`` does, and goes on
            periodically where the pad is longer than the axis; ``edge`` repeats the edge; ``zero`` marks the
            positions outside by -1.

    Returns:
        (count,) int64 in [0, length), or -1 under ``zero``.
    """
    positions = np.arange(start, start + count, dtype=np.int64)
    if padding == "edge":
        return np.clip(positions, 0, length - 1)
    if padding == "zero":
        return np.where((positions >= 0) & (positions < length), positions, -1)
    last = length - 1
    if last == 0:
        return np.zeros_like(positions)
    return last - np.abs(positions % (2 * last) - last)


def unit_float(image: npt.NDArray[Any]) -> FloatArray:
    """Convert to float32: uint8 and uint16 are divided by their maximum, float32 stays as it is."""
    if image.dtype == np.float32:
        return image
    scaled: FloatArray = image.astype(np.float32)
    scaled /= np.float32(np.iinfo(image.dtype).max)
    return scaled


class WindowView(ABC):
    """An image of ``size`` that is computed window by window.

    Attributes:
        size: height and width of the whole image; windows may reach beyond it.
        channels: the number of channels.
    """

    def __init__(self, image: npt.NDArray[Any], size: Size, padding: Padding) -> None:
        if image.ndim != 3 or 0 in image.shape:
            raise UsageError(f"an image must be (height, width, channels) with at least one pixel, not {image.shape}")
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            raise UsageError(f"an image must be uint8, uint16 or float32, not {image.dtype}")
        if padding not in get_args(Padding):
            raise UsageError(f"'{padding}' is not a padding", fix=f"use one of {', '.join(get_args(Padding))}")
        if size.height < 1 or size.width < 1:
            raise UsageError(f"an image cannot be resized to {size}")
        self.size = size
        self.channels = int(image.shape[2])
        self._image = image
        self._padding: Padding = padding

    def window(self, y: int, x: int, height: int, width: int) -> FloatArray:
        """Compute one window.

        Args:
            y: the window's first row in the resized image; may be negative.
            x: its first column.
            height: its height in pixels.
            width: its width in pixels.

        Returns:
            (height, width, channels) float32, a new array.

        Raises:
            UsageError: the window is empty.
        """
        if height < 1 or width < 1:
            raise UsageError(f"a window must hold at least one pixel, not {width}x{height}")
        rows = pad_indices(y, height, self.size.height, self._padding)
        columns = pad_indices(x, width, self.size.width, self._padding)
        if self._padding != "zero":
            return self._gather(rows, columns)
        out = np.zeros((height, width, self.channels), np.float32)
        inside_rows, inside_columns = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
        if inside_rows.size and inside_columns.size:
            block = np.s_[inside_rows[0] : inside_rows[-1] + 1, inside_columns[0] : inside_columns[-1] + 1]
            out[block] = self._gather(rows[inside_rows], columns[inside_columns])
        return out

    @abstractmethod
    def _gather(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> FloatArray:
        """Compute the pixels at the crossings of ``rows`` and ``columns``, all inside the image."""


class PhotoView(WindowView):
    """An image that has its full size already, converted to float32 window by window.

    Args:
        image: (H, W, C) uint8, uint16 (both scaled to [0, 1]) or float32 (kept as it is). It is not copied.
        padding: what windows see beyond the image (see :func:`pad_indices`).

    Raises:
        UsageError: the image is not of these shapes and types.
    """

    def __init__(self, image: npt.NDArray[Any], *, padding: Padding = "reflect") -> None:
        size = Size(*image.shape[:2]) if image.ndim == 3 else Size(1, 1)
        super().__init__(image, size, padding)

    def _gather(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> FloatArray:
        if _is_run(rows) and _is_run(columns):
            window = self._image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        else:
            window = self._image[rows[:, None], columns]
        return unit_float(window.copy() if window.dtype == np.float32 else window)


class BicubicView(WindowView):
    """An image resized bicubically, computed window by window.

    Args:
        image: (H, W, C) uint8, uint16 (both scaled to [0, 1]) or float32 (kept as it is). It is not copied.
        size: the size to which it is resized, larger or smaller.
        padding: what windows see beyond the resized image (see :func:`pad_indices`).
        scale: one factor per channel, applied after resizing; for flow, the ratios of widths and of heights.

    Raises:
        UsageError: the image is not of these shapes and types, or ``scale`` does not fit its channels.
    """

    def __init__(
        self,
        image: npt.NDArray[Any],
        size: Size,
        *,
        padding: Padding = "reflect",
        scale: Sequence[float] | None = None,
    ) -> None:
        super().__init__(image, size, padding)
        if scale is not None and len(scale) != self.channels:
            raise UsageError(f"{len(scale)} scale factors do not fit an image of {self.channels} channels")
        self._scale = None if scale is None else np.asarray(scale, np.float32)
        self._rows = _cubic_taps(image.shape[0], size.height)
        self._columns = _cubic_taps(image.shape[1], size.width)

    def _gather(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> FloatArray:
        row_taps, row_weights = self._rows.indices[rows], self._rows.weights[rows]
        column_taps, column_weights = self._columns.indices[columns], self._columns.weights[columns]
        # Only the source rows that some output row reads are converted and widened.
        needed, positions = np.unique(row_taps, return_inverse=True)
        positions = positions.reshape(row_taps.shape)
        first, last = int(column_taps.min()), int(column_taps.max())
        if _is_run(needed):
            source = unit_float(self._image[needed[0] : needed[-1] + 1, first : last + 1])
        else:
            source = unit_float(self._image[needed, first : last + 1])
        widened = _weighted_sum(source, column_taps - first, column_weights, axis=1)
        out = np.empty((len(rows), len(columns), self.channels), np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            out[block] = _weighted_sum(widened, positions[block], row_weights[block], axis=0)
        if self._scale is not None:
            out *= self._scale
        return out


@dataclass(frozen=True, slots=True)
class _Taps:
    """For each output position of one axis, the four source positions read and their weights."""

    indices: npt.NDArray[np.int64]  # (n, 4), clipped to the source
    weights: FloatArray  # (n, 4)


def _cubic_taps(source_length: int, length: int) -> _Taps:
    # torch finds the source coordinate in float32 with one fused multiply-add: at 4096 px another rounding would shift
    # the fraction by up to 1e-4. The product of two float32 is exact in float64, so rounding once gives the same.
    ratio = np.float32(source_length) / np.float32(length)
    centres = np.arange(length, dtype=np.float64) + 0.5
    coordinates = (np.float64(ratio) * centres - 0.5).astype(np.float32)
    floors = np.minimum(np.floor(coordinates).astype(np.int64), source_length - 1)
    after = np.clip(coordinates - floors.astype(np.float32), np.float32(0), np.float32(1))
    before = np.float32(1) - after
    weights = np.stack([_cubic_far(after + 1), _cubic_near(after), _cubic_near(before), _cubic_far(before + 1)], axis=1)
    indices = np.clip(floors[:, None] + np.arange(-1, 3), 0, source_length - 1)
    return _Taps(indices, weights)


def _cubic_near(x: FloatArray) -> FloatArray:
    """Keys' cubic convolution kernel for distances up to 1."""
    return ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1


def _cubic_far(x: FloatArray) -> FloatArray:
    """Keys' cubic convolution kernel for distances from 1 to 2."""
    return ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A


def _weighted_sum(source: FloatArray, taps: npt.NDArray[np.int64], weights: FloatArray, *, axis: int) -> FloatArray:
    """Sum over k of ``source`` taken at ``taps[:, k]`` along ``axis``, times ``weights[:, k]``."""
    shape = (1, -1, 1) if axis == 1 else (-1, 1, 1)
    total = source.take(taps[:, 0], axis=axis)
    total *= weights[:, 0].reshape(shape)
    for tap in range(1, taps.shape[1]):
        term = source.take(taps[:, tap], axis=axis)
        term *= weights[:, tap].reshape(shape)
        total += term
    return total


def _is_run(indices: npt.NDArray[np.int64]) -> bool:
    """Whether the indices are consecutive, so that a slice serves."""
    return len(indices) == int(indices[-1]) - int(indices[0]) + 1 and bool((np.diff(indices) == 1).all())
