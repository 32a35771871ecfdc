"""The wavelet colour fix: the restored photo's detail with the video frame's colours.

Both images are split by a 5-level a-trous wavelet transform, whose low-pass is the separable kernel [1 2 1]/4 at
dilations 1, 2, 4, 8 and 16 with replicated borders; the result is the content's high frequencies plus the style's low
frequencies (UPSTREAM.md, "Putting it together").

Work goes strip by strip. A result pixel depends on what lies within 1 + 2 + 4 + 8 + 16 = 31 pixels of it, so a strip
with a halo of 31 rows gives exactly the rows that the whole image would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from livemoments.errors import UsageError
from livemoments.runtime.resize import FloatArray
from livemoments.types import Size

RowsFunction: TypeAlias = Callable[[int, int], FloatArray]
"""Gives an image's rows y0 to y1 (exclusive): (y1 - y0, W, C) float32."""

_DILATIONS_PX = (1, 2, 4, 8, 16)
HALO_PX = sum(_DILATIONS_PX)
# Rows smoothed at once: (16, 4096, 3) float32 is 786 kB, which stays in a core's second-level cache.
_BLOCK_ROWS = 16
_QUARTER = np.float32(0.25)
_HALF = np.float32(0.5)
_LEVELS_8BIT = np.float32(255)


def to_unit_range(decoded: FloatArray) -> FloatArray:
    """Bring the decoder's range [-1, 1] to [0, 1], clipped: a new float32 array of the same shape."""
    unit = decoded / np.float32(2)
    unit += _HALF
    return np.clip(unit, 0, 1, out=unit)


def quantize_8bit(image: FloatArray) -> FloatArray:
    """Clip to [0, 1] and round to the nearest multiple of 1/255 (half to even), as float32."""
    return np.rint(np.clip(image, 0, 1) * _LEVELS_8BIT) / _LEVELS_8BIT


def quantize_8bit_wrapping(image: FloatArray) -> FloatArray:
    """Truncate to multiples of 1/255 modulo 256 levels, as upstream does with the resized frame.

    Upstream does not clip the bicubic resize's over- and undershoots before it converts to bytes: 1.02 becomes 4/255.
    """
    levels = (image * _LEVELS_8BIT).astype(np.int32) & 0xFF
    return levels.astype(np.float32) / _LEVELS_8BIT


def low_frequencies(image: FloatArray) -> FloatArray:
    """The image after the five low-pass levels.

    Args:
        image: (H, W, C) float32.

    Returns:
        (H, W, C) float32, a new array.
    """
    low = image
    for dilation in _DILATIONS_PX:
        low = _smooth(low, dilation)
    return low


def wavelet_color_fix(content: FloatArray, style: FloatArray, *, compat_upstream: bool = False) -> FloatArray:
    """Give ``content`` the low frequencies of ``style``.

    Args:
        content: (H, W, C) float32 in [0, 1], the restored photo (see :func:`to_unit_range`).
        style: (H, W, C) float32, the resized video frame; nominally in [0, 1], with the resize's overshoots.
        compat_upstream: quantise content, style and result to 8 bits as upstream does: the content rounded, the style
            truncated **without clipping**, so that overshoots wrap round (see :func:`quantize_8bit_wrapping`), the
            result clipped and truncated. By default nothing is quantised and the style is clipped to [0, 1].

    Returns:
        (H, W, C) float32 in [0, 1]; multiples of 1/255 under ``compat_upstream``.

    Raises:
        UsageError: the shapes differ.
    """
    if content.shape != style.shape:
        raise UsageError(f"the photo {content.shape} and the frame {style.shape} differ in shape")
    return _fix_compat(content, style) if compat_upstream else _fix(content, style)


def color_fix_rows(
    content_rows: RowsFunction,
    style_rows: RowsFunction,
    size: Size,
    *,
    compat_upstream: bool = False,
    strip_px: int = 256,
) -> Iterator[tuple[int, FloatArray]]:
    """Run :func:`wavelet_color_fix` strip by strip; the rows equal the whole image's bit for bit.

    Args:
        content_rows: gives rows of the restored photo, in [0, 1].
        style_rows: gives rows of the resized video frame.
        size: both images' size in pixels.
        compat_upstream: see :func:`wavelet_color_fix`.
        strip_px: rows per strip, to which the halo of twice 31 rows is added.

    Yields:
        (y0, rows): the strip's first row, and (up to strip_px, W, C) float32 in [0, 1], from top to bottom.

    Raises:
        UsageError: ``strip_px`` is not positive, or the two functions' rows differ in shape.
    """
    if strip_px < 1:
        raise UsageError(f"a strip must have at least one row, not {strip_px}")
    for y0 in range(0, size.height, strip_px):
        y1 = min(y0 + strip_px, size.height)
        top, bottom = max(y0 - HALO_PX, 0), min(y1 + HALO_PX, size.height)
        fixed = wavelet_color_fix(content_rows(top, bottom), style_rows(top, bottom), compat_upstream=compat_upstream)
        yield y0, fixed[y0 - top : y1 - top]


def _fix(content: FloatArray, style: FloatArray) -> FloatArray:
    # The transform is linear: high(content) + low(style) = content + low(style - content), half the low-passes.
    fixed = np.clip(style, 0, 1)
    fixed -= content
    fixed = low_frequencies(fixed)
    fixed += content
    return np.clip(fixed, 0, 1, out=fixed)


def _fix_compat(content: FloatArray, style: FloatArray) -> FloatArray:
    # Upstream's order of operations: truncating to 8 bits makes a level out of a rounding error.
    image = quantize_8bit(content)
    low_style = quantize_8bit_wrapping(style)
    high = np.zeros_like(image)
    for dilation in _DILATIONS_PX:
        low = _smooth_compat(image, dilation)
        high += image
        high -= low
        image = low
        low_style = _smooth_compat(low_style, dilation)
    fixed = high + low_style
    return np.floor(np.clip(fixed, 0, 1) * _LEVELS_8BIT) / _LEVELS_8BIT


def _smooth(image: FloatArray, dilation: int) -> FloatArray:
    """One level: [1 2 1]/4 along rows and columns with taps ``dilation`` pixels apart and replicated borders."""
    height, width, _ = image.shape
    out = np.empty_like(image)
    inner = min(dilation, width)
    for start in range(0, height, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, height))
        centre = image[rows[0] : rows[-1] + 1]
        quarter = image.take(np.maximum(rows - dilation, 0), axis=0)
        quarter += image.take(np.minimum(rows + dilation, height - 1), axis=0)
        quarter += centre
        quarter += centre
        quarter *= _QUARTER * _QUARTER
        block = out[rows[0] : rows[-1] + 1]
        np.add(quarter, quarter, out=block)
        block[:, inner:] += quarter[:, : width - inner]
        block[:, :inner] += quarter[:, :1]
        block[:, : width - inner] += quarter[:, inner:]
        block[:, width - inner :] += quarter[:, -1:]
    return out


def _smooth_compat(image: FloatArray, dilation: int) -> FloatArray:
    """The same level as :func:`_smooth`, its nine taps summed one by one in row-major order, as torch's conv2d does."""
    height, width, _ = image.shape
    out = np.empty_like(image)
    columns = np.clip(np.arange(-dilation, width + dilation), 0, width - 1)
    for start in range(0, height, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, height))
        block = out[rows[0] : rows[-1] + 1]
        block[...] = 0
        for row_tap, row_weight in ((-dilation, _QUARTER), (0, _HALF), (dilation, _QUARTER)):
            taken = image.take(np.clip(rows + row_tap, 0, height - 1), axis=0)
            taken *= row_weight * _QUARTER
            padded = taken.take(columns, axis=1)
            block += padded[:, :width]
            taken += taken
            block += taken
            block += padded[:, 2 * dilation :]
    return out
