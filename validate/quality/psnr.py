"""PSNR on y, summed strip by strip."""

from __future__ import annotations

import math

import cv2
import numpy as np

from livemoments.validate.quality.luma import PEAK, Luma, luma_strips


class SquaredError:
    """The squared error of two pictures that arrive as strips of y."""

    def __init__(self) -> None:
        self._total = 0.0
        self._pixels = 0

    def push(self, value: np.ndarray, reference: np.ndarray) -> None:
        """Take the next strip: two (rows, W) float32 arrays."""
        self._total += cv2.norm(value, reference, cv2.NORM_L2SQR)  # summed in float64
        self._pixels += value.size

    @property
    def psnr_db(self) -> float:
        """``10 log10(255^2 / mean squared error)``; infinite for equal pictures."""
        error = self._total / self._pixels
        return math.inf if error == 0.0 else 10.0 * math.log10(PEAK**2 / error)


def psnr_y(value: np.ndarray, reference: np.ndarray, luma: Luma = Luma.BT601_STUDIO) -> float:
    """Peak signal-to-noise ratio of y in dB; infinite for pictures of equal y.

    Args:
        value: (H, W, 3) RGB, uint8, uint16, or float in [0, 1].
        reference: what it is compared with, of the same shape and type.
        luma: the convention of y.

    Raises:
        UsageError: the pictures cannot be compared.
    """
    error = SquaredError()
    for strips in luma_strips(value, reference, luma):
        error.push(*strips)
    return error.psnr_db
