"""What is measured of a restored photo: quality metrics, the seam score, PCR's statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.bundle import hash_file
from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.runtime.restore import RestoreResult
from livemoments.runtime.tiles.plan import TilePlan
from livemoments.validate.quality.luma import Luma
from livemoments.validate.quality.meter import ImageQuality, QualityMeter
from livemoments.validate.quality.pcr_stats import pcr_statistics
from livemoments.validate.quality.registry import DEFAULT
from livemoments.validate.quality.seam import seam_score
from livemoments.validate.quality.weights import open_source

_STRIP_ROWS = 256

Quality = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], ImageQuality]
"""Output, upscaled input, key photo, truth (or ``None``), each (H, W, 3) -> the metrics of output and input."""


@dataclass(frozen=True, slots=True)
class Measures:
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
    """PSNR over all channels of two (H, W, 3) pictures in 8-bit levels, summed in strips; infinite for equal ones."""
    total = 0
    for y0 in range(0, len(value), _STRIP_ROWS):
        strips = (to_bit_depth(pixels[y0 : y0 + _STRIP_ROWS], 8).astype(np.int32) for pixels in (value, reference))
        difference = np.subtract(*strips)
        total += int((difference * difference).sum(dtype=np.int64))
    return math.inf if total == 0 else 10.0 * math.log10(255.0**2 * value.size / total)


@dataclass(frozen=True, slots=True)
class StandardMeasures:
    """Makes the package's own metrics; can be sent to another machine, where it makes them again.

    Args:
        metrics: names of the quality metrics.
        weights: folder of their weights, the same path on every machine.
        luma: the convention of y.
        device: torch's, for the deep metrics' networks.
    """

    metrics: tuple[str, ...] = DEFAULT
    weights: Path | None = None
    luma: str = Luma.BT601_STUDIO
    device: str = "cpu"

    def __call__(self) -> Measures:
        """The two measurements, with this process's own meter."""
        meter = self.meter()

        def seam(pixels: np.ndarray, plan: TilePlan) -> float | None:
            found = seam_score(pixels, plan.tiles)
            return None if found is None else found.score

        def pcr(result: RestoreResult, fp32_corners: np.ndarray | None) -> Mapping[str, float]:
            corners = np.array([(corner.y, corner.x) for _, corner in result.corners])
            return pcr_statistics(result.metadata, corners, fp32_corners)

        return Measures(meter.measure, seam, pcr)

    def meter(self) -> QualityMeter:
        """What measures the quality metrics; its networks are not loaded yet.

        Raises:
            UsageError: a metric or a convention is unknown, or the weights' folder is not there.
        """
        return QualityMeter(self.metrics, weights=self.weights, luma=self.luma, device=self.device)

    def key(self) -> dict[str, Any]:
        """What decides the metrics: names, convention, and the SHA-256 of the weights that were found.

        Raises:
            UsageError: as for :meth:`meter`.
        """
        meter = self.meter()
        found: dict[str, Any] = {"metrics": [spec.name for spec in meter.specs], "luma": str(meter.luma)}
        for spec in meter.specs:
            if spec.sources:
                absent = spec.name in meter.problems
                found[f"weights.{spec.name}"] = None if absent else hash_file(open_source(spec, self.weights)[1]).sha256
        return found
