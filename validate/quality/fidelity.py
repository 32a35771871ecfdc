"""PSNR, SSIM and MS-SSIM of one pair of pictures in one pass: y is computed once, and MS-SSIM's first scale is SSIM."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from livemoments.distances import psnr_of
from livemoments.validate.quality.luma import PEAK, Luma, luma_strips
from livemoments.validate.quality.ms_ssim import LEAST_SIDE_PX, MultiScaleSimilarity
from livemoments.validate.quality.ssim import WINDOW_PX, Similarity

FIDELITY = ("psnr_y", "ssim_y", "ms_ssim_y")


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
        return psnr_of(self._total / self._pixels, PEAK)


def measure_fidelity(
    value: np.ndarray,
    reference: np.ndarray,
    names: Collection[str] = FIDELITY,
    luma: Luma = Luma.BT601_STUDIO,
) -> dict[str, float | None]:
    """Measure those of :data:`FIDELITY` that are named.

    Args:
        value: (H, W, 3) RGB, uint8, uint16, or float in [0, 1].
        reference: what it is compared with, of the same shape and type.
        names: those that are wanted.
        luma: the convention of y.

    Returns:
        By name; infinite PSNR for pictures of equal y, ``None`` where the pictures are too small for a metric.

    Raises:
        UsageError: the pictures cannot be compared.
    """
    height, width = value.shape[:2]
    error = SquaredError() if "psnr_y" in names else None
    scales = (
        MultiScaleSimilarity(height, width) if "ms_ssim_y" in names and min(height, width) >= LEAST_SIDE_PX else None
    )
    similarity = None
    if "ssim_y" in names and min(height, width) >= WINDOW_PX:
        similarity = scales.scales[0] if scales is not None else Similarity(width)
    for strips in luma_strips(value, reference, luma):
        if error is not None:
            error.push(*strips)
        if scales is not None:
            scales.push(*strips)
        elif similarity is not None:
            similarity.push(*strips)
    values = {
        "psnr_y": None if error is None else error.psnr_db,
        "ssim_y": None if similarity is None else similarity.ssim,
        "ms_ssim_y": None if scales is None else scales.ms_ssim,
    }
    return {name: values[name] for name in FIDELITY if name in names}


def psnr_y(value: np.ndarray, reference: np.ndarray, luma: Luma = Luma.BT601_STUDIO) -> float:
    """Peak signal-to-noise ratio of y in dB, as :func:`measure_fidelity` has it; infinite for pictures of equal y.

    Raises:
        UsageError: the pictures cannot be compared.
    """
    error = SquaredError()
    for strips in luma_strips(value, reference, luma):
        error.push(*strips)
    return error.psnr_db
