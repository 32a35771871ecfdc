"""What is measured of a restored photo: quality metrics, the seam score, PCR's statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from livemoments.bundle import hash_file
from livemoments.distances import psnr_of
from livemoments.errors import UsageError
from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.runtime.restore import RestoreResult
from livemoments.runtime.tiles.plan import TilePlan
from livemoments.validate.quality.luma import Luma
from livemoments.validate.quality.meter import ImageQuality, QualityMeter
from livemoments.validate.quality.registry import DEFAULT
from livemoments.validate.quality.seam import seam_score
from livemoments.validate.quality.weights import open_source

Quality = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], ImageQuality]
"""Output, upscaled input, key photo, truth (or ``None``), each (H, W, 3) -> the metrics of output and input."""


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """The metrics of one worker, which may hold networks: made once, used for every image.

    Attributes:
        quality: the metrics of one picture.
        seam: of a restored photo and its tiles; ``None`` with one tile.
        pcr: of a restoration, and where the float32 flow puts the reference tiles, if that is known: (tiles, 2), y and
            x in pixels.
    """

    quality: Quality
    seam: Callable[[np.ndarray, TilePlan], float | None]
    pcr: Callable[[RestoreResult, np.ndarray | None], Mapping[str, float]]


def photo_psnr_db(value: np.ndarray, reference: np.ndarray) -> float:
    """PSNR over all channels of two (H, W, 3) pictures in 8-bit levels; infinite for equal ones."""
    squared = cv2.norm(to_bit_depth(value, 8), to_bit_depth(reference, 8), cv2.NORM_L2SQR)
    return psnr_of(squared / value.size, 255.0)


@dataclass(frozen=True, slots=True)
class StandardMetrics:
    """Makes the package's own metrics; can be sent to another machine, where it makes them again.

    Args:
        names: of the quality metrics.
        weights: folder of their weights, the same path on every machine.
        luma: the convention of y.
        device: torch's, for the deep metrics' networks.
    """

    names: tuple[str, ...] = DEFAULT
    weights: Path | None = None
    luma: str = Luma.BT601_STUDIO
    device: str = "cpu"

    def __call__(self) -> ImageMetrics:
        """What measures a photo, with this process's own meter."""
        meter = self.meter()

        def seam(pixels: np.ndarray, plan: TilePlan) -> float | None:
            return seam_score(pixels, plan.tiles)

        def pcr(result: RestoreResult, fp32_corners: np.ndarray | None) -> Mapping[str, float]:
            corners = np.array([(corner.y, corner.x) for _, corner in result.corners])
            return pcr_statistics(result.metadata, corners, fp32_corners)

        return ImageMetrics(meter.measure, seam, pcr)

    def meter(self) -> QualityMeter:
        """What measures the quality metrics; its networks are not loaded yet.

        Raises:
            UsageError: a metric or a convention is unknown, or the weights' folder is not there.
        """
        return QualityMeter(self.names, weights=self.weights, luma=self.luma, device=self.device)

    def key(self) -> dict[str, Any]:
        """What decides the metrics: names, convention, and the SHA-256 of the weights that were found.

        Raises:
            UsageError: as for :meth:`meter`.
        """
        meter = self.meter()
        key: dict[str, Any] = {"metrics": [spec.name for spec in meter.specs], "luma": str(meter.luma)}
        for spec in meter.specs:
            if spec.sources:
                absent = spec.name in meter.problems
                key[f"weights.{spec.name}"] = None if absent else hash_file(open_source(spec, self.weights)[1]).sha256
        return key


def pcr_statistics(
    metadata: Mapping[str, Any], corners: np.ndarray | None = None, fp32_corners: np.ndarray | None = None
) -> dict[str, float]:
    """The ``pcr`` of an :class:`ImageResult`.

    Args:
        metadata: of a :class:`RestoreResult`: ``pcr_mean_shift_px`` and ``pcr_clamp_rate`` are taken from it.
        corners: (tiles, 2) whole numbers, the reference tiles' first rows and columns (the observer's
            ``ref_patch_coords``).
        fp32_corners: the same, from the float32 flow.

    Returns:
        ``mean_shift_px``, ``clamp_rate`` (share of the tiles), and with both corners ``corners_differ`` (how many
        tiles) and ``corners_off_px`` (the farthest of them).

    Raises:
        UsageError: the corners are not of the same tiles.
    """
    statistics = {
        "mean_shift_px": float(metadata["pcr_mean_shift_px"]),
        "clamp_rate": float(metadata["pcr_clamp_rate"]),
    }
    if corners is not None and fp32_corners is not None:
        if corners.shape != fp32_corners.shape or corners.ndim != 2 or corners.shape[1] != 2:
            raise UsageError(f"corners of shapes {corners.shape} and {fp32_corners.shape} are not of the same tiles")
        offsets = np.hypot(*(corners.astype(np.float64) - fp32_corners.astype(np.float64)).T)
        statistics["corners_differ"] = float(np.count_nonzero(offsets))
        statistics["corners_off_px"] = float(offsets.max(initial=0.0))
    return statistics
