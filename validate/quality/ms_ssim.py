"""MS-SSIM on y (Wang, Simoncelli, Bovik 2003): five scales, each half the one before, streamed through all at once.

Windows and constants are :mod:`ssim`'s. Scales are made by the mean of 2 x 2 pixels; where a side is odd, the first row
and column are repeated before (piq's convention). Negative similarities count as 0.
"""

from __future__ import annotations

import cv2
import numpy as np

from livemoments.errors import UsageError
from livemoments.validate.quality.ssim import WINDOW_PX, Similarity

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang et al. 2003)."""
LEAST_SIDE_PX = (WINDOW_PX - 1) * 2 ** (len(WEIGHTS) - 1) + 1
"""161: below, the coarsest scale holds no window."""


class Halving:
    """Halves a plane that arrives as strips of rows by the mean of 2 x 2 pixels.

    Args:
        height: rows of the whole plane; an odd last one is repeated.
        width: its columns; an odd last one is repeated.
    """

    def __init__(self, height: int, width: int) -> None:
        self._padding = max(height % 2, width % 2)
        self.height = (height + self._padding) // 2
        self.width = (width + self._padding) // 2
        self._kept: np.ndarray | None = None

    def push(self, rows: np.ndarray) -> np.ndarray:
        """Take the next (rows, W) float32 strip, give the rows of the half that are complete."""
        if self._padding:
            rows = np.concatenate([rows[:, :1], rows], axis=1)
        if self._kept is None:
            self._kept = rows[: self._padding]
        rows = np.concatenate([self._kept, rows])
        even = len(rows) // 2 * 2
        self._kept = rows[even:].copy()
        if even == 0:
            return np.empty((0, self.width), np.float32)
        half: np.ndarray = cv2.resize(
            rows[:even, : 2 * self.width], (self.width, even // 2), interpolation=cv2.INTER_AREA
        )
        return half


class MultiScaleSimilarity:
    """MS-SSIM of two pictures that arrive as strips of y.

    Args:
        height: the pictures' height in pixels.
        width: their width in pixels.

    Raises:
        UsageError: a side is shorter than 161 pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        if min(height, width) < LEAST_SIDE_PX:
            raise UsageError(
                f"MS-SSIM needs pictures of at least {LEAST_SIDE_PX}x{LEAST_SIDE_PX} pixels, not {width}x{height}"
            )
        self.scales = [Similarity(width)]
        self._halvings: list[tuple[Halving, Halving]] = []
        for _ in WEIGHTS[1:]:
            pair = (Halving(height, width), Halving(height, width))
            height, width = pair[0].height, pair[0].width
            self._halvings.append(pair)
            self.scales.append(Similarity(width))

    def push(self, value: np.ndarray, reference: np.ndarray) -> None:
        """Take the next strip: two (rows, W) float32 arrays."""
        self.scales[0].push(value, reference)
        for (of_value, of_reference), scale in zip(self._halvings, self.scales[1:], strict=True):
            value, reference = of_value.push(value), of_reference.push(reference)
            if len(value) == 0:
                return
            scale.push(value, reference)

    @property
    def ms_ssim(self) -> float:
        """The product over the scales."""
        parts = [scale.contrast for scale in self.scales[:-1]] + [self.scales[-1].ssim]
        return float(np.prod([max(part, 0.0) ** weight for part, weight in zip(parts, WEIGHTS, strict=True)]))
