"""The y of YCbCr, on a scale of 255, a strip of rows at a time.

Two conventions are in use, 1.3 dB of PSNR apart, so the convention is part of a metric's title:

- ``bt601-studio``: what MATLAB's and BasicSR's ``rgb2ycbcr`` give, 16 for black and 235 for white;
- ``bt601-full``: the Y of YIQ and of JPEG, 0 for black and 255 for white.

Neither is rounded to whole levels. The peak is 255 in both, as in the literature.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import cv2
import numpy as np

from livemoments.errors import UsageError

PEAK = 255.0
STRIP_PX = 1 << 19
"""Pixels of a strip: its dozen float32 maps of 2 MB each stay near the processor's caches."""
_LEAST_STRIP_ROWS = 64


class Luma(enum.StrEnum):
    """A convention of y; see the module."""

    BT601_STUDIO = "bt601-studio"
    BT601_FULL = "bt601-full"

    @property
    def label(self) -> str:
        """As it is written in a metric's title."""
        return "y, BT.601 studio" if self is Luma.BT601_STUDIO else "y, BT.601 full"

    @classmethod
    def parse(cls, text: str) -> Luma:
        """Read a convention's name.

        Raises:
            UsageError: there is no such convention.
        """
        try:
            return cls(text)
        except ValueError:
            raise UsageError(f"'{text}' is no luma convention", fix=f"use {' or '.join(cls)}") from None


# Weights of R, G and B in [0, 1] and the value of black (ITU-R BT.601; the studio range's are MATLAB's digits).
_WEIGHTS = {
    Luma.BT601_STUDIO: (65.481, 128.553, 24.966, 16.0),
    Luma.BT601_FULL: (0.299 * 255, 0.587 * 255, 0.114 * 255, 0.0),
}


def full_scale(pixels: np.ndarray) -> float:
    """The value of white: 255 for uint8, 65535 for uint16, 1 for floating point.

    Raises:
        UsageError: the array is no RGB picture.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise UsageError(f"a picture must be (height, width, 3), not {pixels.shape}")
    if pixels.dtype in (np.uint8, np.uint16):
        return float(np.iinfo(pixels.dtype).max)
    if pixels.dtype in (np.float32, np.float64):
        return 1.0
    raise UsageError(f"a picture must be uint8, uint16, or float in [0, 1], not {pixels.dtype}")


def luma_of(pixels: np.ndarray, luma: Luma = Luma.BT601_STUDIO) -> np.ndarray:
    """The y of a picture, or of a part of one.

    Args:
        pixels: (H, W, 3) RGB, uint8, uint16, or float in [0, 1].
        luma: the convention.

    Returns:
        (H, W) float32 on a scale of 255.

    Raises:
        UsageError: the array is no RGB picture.
    """
    scale = full_scale(pixels)
    *weights, black = _WEIGHTS[luma]
    matrix = np.array([[weight / scale for weight in weights] + [black]])
    plane: np.ndarray = cv2.transform(pixels.astype(np.float32), matrix)
    return plane.reshape(pixels.shape[:2])


def check_same_size(value: np.ndarray, reference: np.ndarray) -> None:
    """Refuse pictures of different sizes.

    Raises:
        UsageError: their heights or widths differ.
    """
    if value.shape[:2] != reference.shape[:2]:
        sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (value, reference))
        raise UsageError(f"pictures of different sizes cannot be compared: {sizes}")


def luma_strips(
    value: np.ndarray, reference: np.ndarray, luma: Luma = Luma.BT601_STUDIO
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The y of two pictures of one size, strip by strip from the top: what every metric of this package is fed with.

    Args:
        value: (H, W, 3) RGB.
        reference: what it is compared with, of the same size; the bit depths may differ.
        luma: the convention.

    Yields:
        Two (rows, W) float32 arrays.

    Raises:
        UsageError: the sizes differ, or an array is no RGB picture.
    """
    full_scale(value)
    full_scale(reference)
    check_same_size(value, reference)
    height, width = value.shape[:2]
    rows = max(_LEAST_STRIP_ROWS, STRIP_PX // width)
    for top in range(0, height, rows):
        yield luma_of(value[top : top + rows], luma), luma_of(reference[top : top + rows], luma)
