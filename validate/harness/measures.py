"""What is measured of a restored photo: quality metrics, the seam score, PCR's statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livemoments.runtime._image_encode import to_bit_depth
from livemoments.runtime.restore import RestoreResult
from livemoments.runtime.tiles import TilePlan

_STRIP_ROWS = 256

Quality = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], Mapping[str, float | None]]
"""Output, upscaled input, key photo, truth (or ``None``), each (H, W, 3) -> metrics by name."""


@dataclass(frozen=True, slots=True)
class Measures:
    """The metrics of one worker, which may hold networks: made once, used for every image.

    Attributes:
        quality: the metrics of one picture.
        seam: of a restored photo and its tiles; ``None`` with one tile.
        pcr: of a restoration.
    """

    quality: Quality
    seam: Callable[[np.ndarray, TilePlan], float | None]
    pcr: Callable[[RestoreResult], Mapping[str, float]]


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
    """

    metrics: tuple[str, ...]
    weights: Path | None = None

    def __call__(self) -> Measures:
        from livemoments.validate.quality.aggregate import measure_image
        from livemoments.validate.quality.pcr_stats import pcr_statistics
        from livemoments.validate.quality.seam import seam_score

        def quality(
            output: np.ndarray, upscaled: np.ndarray, reference: np.ndarray, truth: np.ndarray | None
        ) -> Mapping[str, float | None]:
            return measure_image(output, upscaled, reference, truth, metrics=self.metrics, weights=self.weights)

        return Measures(quality, seam_score, pcr_statistics)
