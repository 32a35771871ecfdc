"""Two frames a little apart: what is a good pair, and what it is cropped to."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.dis import dis_flow
from livemoments.distances import cosine
from livemoments.types import Size

LEAST_MOTION_PX = 1.0
"""Of the fastest twentieth of the picture between the two frames, in its own pixels: less is a still scene."""
LEAST_CORRELATION = 0.5
"""Of the two lumas once motion is compensated: less is a cut, or motion that no flow can follow."""
LEAST_CONTRAST = 4.0
"""Standard deviation of luma in 8-bit levels: less is a black or an empty picture."""
MEASURE_PX = 256
"""Longer side of the pictures that pairs are measured on."""
CROP_TRIES = 4
"""Places that are drawn for a crop; the one with the most detail is taken."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PairMeasure:
    """How two frames differ.

    Attributes:
        motion_px: 95th percentile of the optical flow's length, in pixels of the frames.
        correlation: of the two lumas after warping one to the other, -1 to 1.
        contrast: standard deviation of the first one's luma, in 8-bit levels.
    """

    motion_px: float
    correlation: float
    contrast: float

    def problem(self) -> str | None:
        """Why the pair is of no use; ``None`` if it is good."""
        if self.contrast < LEAST_CONTRAST:
            return f"empty picture (contrast {self.contrast:.1f} of {LEAST_CONTRAST:.1f} levels)"
        if self.motion_px < LEAST_MOTION_PX:
            return f"still scene (motion {self.motion_px:.2f} of {LEAST_MOTION_PX:.1f} pixels)"
        if self.correlation < LEAST_CORRELATION:
            return f"scene cut (correlation {self.correlation:.2f} of {LEAST_CORRELATION:.2f})"
        return None


def measure_pair(first: Pixels, second: Pixels) -> PairMeasure:
    """Measure two frames (H, W, 3) uint8 RGB of one size."""
    height, width = first.shape[:2]
    factor = min(1.0, MEASURE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) for image in (first, second)]
    flow = dis_flow(small[0], small[1])
    lumas = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in small]
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
    warped = cv2.remap(lumas[1], x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return PairMeasure(
        motion_px=float(np.percentile(np.hypot(flow[..., 0], flow[..., 1]), 95)) / factor,
        correlation=cosine(lumas[0] - lumas[0].mean(), np.asarray(warped) - warped.mean()),
        contrast=float(lumas[0].std()),
    )


def place_crop(image: Pixels, crop: Size, rng: np.random.Generator) -> tuple[int, int]:
    """Where to crop: of a few places at random (even coordinates), the one with the most detail.

    Args:
        image: (H, W, 3) uint8 RGB, at least as large as the crop.
        crop: its size.
        rng: where the places are drawn from.

    Returns:
        Its top row and left column.
    """
    height, width = image.shape[:2]
    rows, columns = (height - crop.height) // 2 + 1, (width - crop.width) // 2 + 1
    places = [(2 * int(rng.integers(rows)), 2 * int(rng.integers(columns))) for _ in range(CROP_TRIES)]
    return max(places, key=lambda place: _detail(image[place[0] :, place[1] :][: crop.height, : crop.width]))


def _detail(image: Pixels) -> float:
    """Mean difference between neighbours in rows and columns, in 8-bit levels."""
    luma = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY).astype(np.int16)
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean())


def start_frame(slot: int, phase: float, starts: int) -> int:
    """The first frame of a clip's pair number ``slot``: golden-ratio steps, even for every number of pairs.

    Args:
        slot: 0, 1, 2 …
        phase: of the clip, 0 to 1.
        starts: how many frames a pair can begin at.
    """
    return int((phase + slot * 0.6180339887498949) % 1.0 * starts)
