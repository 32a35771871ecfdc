"""Patch Correspondence Retrieval (PCR): where in the key photo a tile's content lies.

The paper's section 3.4.2: the mean of the flow inside a tile (equation 5) shifts the tile's corner (equation 6), and
the reference tile is cut there. The flow runs from the reselected frame to the video frame at the key photo's instant.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from livemoments.errors import EngineError, UsageError
from livemoments.runtime.resize import BicubicView, FloatArray
from livemoments.types import Size, Tile


class MeanFlow(NamedTuple):
    """The mean displacement inside a tile, in pixels of the photo, x to the right and y downwards."""

    dx: float
    dy: float


class ReferenceCorner(NamedTuple):
    """The reference tile's first row and column, and whether the image's bounds moved it."""

    y: int
    x: int
    clamped: bool


def mean_flow(flow_window: FloatArray) -> MeanFlow:
    """Average the flow of one tile (equation 5).

    The sum is taken in float64 and rounded to float32, the type of upstream's mean. Upstream sums in float32, in an
    order that depends on the machine: both agree to about 1e-6 of the mean, so that a corner can differ, by one pixel,
    where the mean lies that close to a whole number.

    Args:
        flow_window: (h, w, 2) float32, x then y displacement in pixels of the photo.

    Raises:
        EngineError: the flow is not finite.
    """
    total = flow_window.sum(axis=(0, 1), dtype=np.float64)
    mean = (total / (flow_window.shape[0] * flow_window.shape[1])).astype(np.float32)
    if not np.isfinite(mean).all():
        raise EngineError("the optical flow between the video frames is not finite", fix="try --flow dis")
    return MeanFlow(float(mean[0]), float(mean[1]))


def reference_corner(tile: Tile, mean: tuple[float, float], bounds: Size, grid_px: int = 1) -> ReferenceCorner:
    """Find the reference tile's corner (equation 6), as upstream rounds it.

    The corner is ``int(centre + mean - size // 2)`` with ``centre = corner + size // 2``: truncated toward zero, then
    clamped so that the reference tile, of the same size, lies inside ``bounds``.

    Args:
        tile: the tile of the reselected frame.
        mean: (dx, dy), the mean flow inside it in pixels (see :func:`mean_flow`).
        bounds: the (padded) photo's size in pixels.
        grid_px: the corner is moved to the nearest multiple of it, before it is clamped: other frames, whose flow
            differs by less, have the same reference tile then.

    Raises:
        UsageError: the tile is larger than the bounds.
    """
    if tile.height > bounds.height or tile.width > bounds.width:
        raise UsageError(f"a tile of {tile.size} does not fit an image of {bounds}")
    dx, dy = mean
    y = math.trunc(tile.y + tile.height // 2 + dy - tile.height // 2)
    x = math.trunc(tile.x + tile.width // 2 + dx - tile.width // 2)
    y, x = (grid_px * round(place / grid_px) for place in (y, x))
    inside_y = min(max(y, 0), bounds.height - tile.height)
    inside_x = min(max(x, 0), bounds.width - tile.width)
    return ReferenceCorner(inside_y, inside_x, (inside_y, inside_x) != (y, x))


class FlowField:
    """Flow at video size, looked at as if it were resized to the photo and padded by zeros.

    Resizing is bicubic and multiplies x and y by the ratios of widths and heights (UPSTREAM.md, "One photo", 2 and 3).
    Nothing of the photo's size is kept.

    Args:
        flow: (h, w, 2) float32, x then y displacement in pixels of the video.
        size: the photo's size in pixels.

    Raises:
        UsageError: ``flow`` does not have two channels.
    """

    def __init__(self, flow: FloatArray, size: Size) -> None:
        if flow.ndim != 3 or flow.shape[2] != 2:
            raise UsageError(f"flow must be (height, width, 2), not {flow.shape}")
        scale = (size.width / flow.shape[1], size.height / flow.shape[0])
        self._view = BicubicView(flow, size, padding="zero", scale=scale)

    def window(self, tile: Tile) -> FloatArray:
        """The flow inside a tile: (tile.height, tile.width, 2) float32 in pixels of the photo, zero beyond it."""
        return self._view.window(tile.y, tile.x, tile.height, tile.width)

    def mean(self, tile: Tile) -> MeanFlow:
        """The mean flow inside a tile; the zeros beyond the photo count, as they do upstream.

        Raises:
            EngineError: the flow is not finite.
        """
        return mean_flow(self.window(tile))
