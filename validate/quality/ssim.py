"""SSIM on y (Wang, Bovik, Sheikh, Simoncelli 2004), in strips: memory does not grow with the height of the picture.

11 x 11 Gaussian windows of sigma 1.5, K1 = 0.01, K2 = 0.03, a range of 255. Only windows that lie wholly inside the
picture count (``valid``: 5 pixels are lost at each side); variances and covariance are the population's (weighted by
the window, without Bessel's correction); the picture is never scaled down first.
"""

from __future__ import annotations

import cv2
import numpy as np

from livemoments.errors import UsageError
from livemoments.validate.quality.luma import PEAK

WINDOW_PX = 11
SIGMA_PX = 1.5
_C1 = (0.01 * PEAK) ** 2
_C2 = (0.03 * PEAK) ** 2
_MIDDLE = 2 * 128.0
"""Taken off the sum of two values before it is squared: variance does not change, float32 rounds less."""
_HALO_ROWS = WINDOW_PX - 1
_HALF = WINDOW_PX // 2


def _window() -> np.ndarray:
    offsets = np.arange(WINDOW_PX) - _HALF
    weights = np.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    return (weights / weights.sum()).astype(np.float32)


_WINDOW = _window()


class Similarity:
    """Mean SSIM, and its mean contrast-structure part, of two pictures that arrive as strips of y.

    Works on the pictures' sum and difference: with ``s = x + y`` and ``d = x - y`` the numerators and denominators are
    ``m_s^2 -+ m_d^2 + 2 C1`` and ``v_s -+ v_d + 2 C2``. Equal pictures give exactly 1, and nearly equal ones do not
    suffer from the cancellation of two large variances.

    Args:
        width: of the pictures in pixels, at least 11.
    """

    def __init__(self, width: int) -> None:
        self._sum = np.empty((0, width), np.float32)
        self._difference = np.empty((0, width), np.float32)
        self._ssim = 0.0
        self._contrast = 0.0
        self._windows = 0

    def push(self, value: np.ndarray, reference: np.ndarray) -> None:
        """Take the next strip: two (rows, W) float32 arrays."""
        total = np.concatenate([self._sum, cv2.add(value, reference) - np.float32(_MIDDLE)])
        difference = np.concatenate([self._difference, cv2.subtract(value, reference)])
        self._sum, self._difference = total[-_HALO_ROWS:].copy(), difference[-_HALO_ROWS:].copy()
        if min(total.shape) < WINDOW_PX:
            return
        mean_sum, mean_difference = _filtered(total), _filtered(difference)
        spread_sum = _filtered(cv2.multiply(total, total)) - mean_sum * mean_sum
        spread_difference = _filtered(cv2.multiply(difference, difference)) - mean_difference * mean_difference
        contrast = _ratio(spread_sum, spread_difference, 2 * _C2)
        mean_sum += np.float32(_MIDDLE)
        luminance = _ratio(mean_sum * mean_sum, mean_difference * mean_difference, 2 * _C1)
        self._contrast += cv2.sumElems(contrast)[0]  # in float64
        self._ssim += cv2.sumElems(cv2.multiply(luminance, contrast))[0]
        self._windows += contrast.size

    @property
    def ssim(self) -> float:
        """The mean over all windows.

        Raises:
            UsageError: the picture was smaller than a window.
        """
        return self._ssim / self._checked_windows()

    @property
    def contrast(self) -> float:
        """The mean of the contrast-structure part alone, what MS-SSIM takes from all but the coarsest scale.

        Raises:
            UsageError: the picture was smaller than a window.
        """
        return self._contrast / self._checked_windows()

    def _checked_windows(self) -> int:
        if self._windows == 0:
            raise UsageError(f"SSIM needs pictures of at least {WINDOW_PX}x{WINDOW_PX} pixels")
        return self._windows


def _filtered(plane: np.ndarray) -> np.ndarray:
    """The Gaussian mean of every window inside a (h, w) plane: (h - 10, w - 10)."""
    filtered: np.ndarray = cv2.sepFilter2D(plane, cv2.CV_32F, _WINDOW, _WINDOW)
    return filtered[_HALF:-_HALF, _HALF:-_HALF]


def _ratio(of_sum: np.ndarray, of_difference: np.ndarray, constant: float) -> np.ndarray:
    added = np.float32(constant)
    ratio: np.ndarray = cv2.divide(of_sum - of_difference + added, of_sum + of_difference + added)
    return ratio
