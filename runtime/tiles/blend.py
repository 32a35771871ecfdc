"""Blending tiles into one image: each tile weighted toward its centre, divided by the summed weights.

The weight is (1 - x^2)(1 - y^2) with x and y from -1 to 1 over the tile (UPSTREAM.md, "Putting it together").
"""

from __future__ import annotations

import numpy as np

from livemoments.errors import UsageError
from livemoments.runtime.resize import FloatArray
from livemoments.types import Size, Tile

# Upstream's guard against dividing by zero.
_COMPAT_EPSILON = np.float32(1e-8)


def tile_weight(size: Size, *, compat_upstream: bool = False) -> FloatArray:
    """Weights of a tile's pixels, highest in its centre.

    Args:
        size: the tile's size in pixels.
        compat_upstream: sample x and y from -1 to 1 inclusive, as upstream does. The outermost pixels then weigh zero,
            and where no other tile covers them (the photo's top row and left column) the result is mid-grey. By default
            x and y are taken at the pixels' centres, and every weight is positive.

    Returns:
        (size.height, size.width) float32 in [0, 1].
    """
    rows = _axis_weight(size.height, compat_upstream=compat_upstream)
    columns = _axis_weight(size.width, compat_upstream=compat_upstream)
    return rows[:, None] * columns


def _axis_weight(length: int, *, compat_upstream: bool) -> FloatArray:
    if compat_upstream:
        positions = np.linspace(-1, 1, length, dtype=np.float32)
    else:
        positions = ((2 * np.arange(length, dtype=np.float64) + 1) / length - 1).astype(np.float32)
    return np.float32(1) - positions * positions


class Blender:
    """Accumulates tiles, in any order, into one weighted mean.

    It holds (H, W, channels + 1) float32: 201 MB for a 3072 x 4096 photo. Sums of more than two tiles depend on their
    order by float32 rounding; :meth:`add` them in the plan's order where results must be equal bit for bit.

    Args:
        size: the photo's size in pixels.
        channels: how many channels the values have.
        compat_upstream: upstream's weights and its 1e-8 in the divisor (see :func:`tile_weight`).
    """

    def __init__(self, size: Size, channels: int = 3, *, compat_upstream: bool = False) -> None:
        self.size = size
        self.channels = channels
        self._compat_upstream = compat_upstream
        self._sum: FloatArray | None = np.zeros((size.height, size.width, channels), np.float32)
        self._weight: FloatArray = np.zeros((size.height, size.width), np.float32)
        self._tile_weights: dict[Size, FloatArray] = {}

    def add(self, tile: Tile, values: FloatArray) -> None:
        """Add one tile; what of it lies beyond the photo is dropped.

        Args:
            tile: where it lies.
            values: (tile.height, tile.width, channels) float32.

        Raises:
            UsageError: the values do not have the tile's shape.
        """
        if values.shape != (tile.height, tile.width, self.channels):
            raise UsageError(f"values of shape {values.shape} do not fit a tile of {tile.size}")
        total = self._accumulated()
        top, left = max(tile.y, 0), max(tile.x, 0)
        bottom, right = min(tile.y + tile.height, self.size.height), min(tile.x + tile.width, self.size.width)
        if top >= bottom or left >= right:
            return
        if tile.size not in self._tile_weights:
            self._tile_weights[tile.size] = tile_weight(tile.size, compat_upstream=self._compat_upstream)
        part = np.s_[top - tile.y : bottom - tile.y, left - tile.x : right - tile.x]
        weight = self._tile_weights[tile.size][part]
        total[top:bottom, left:right] += values[part] * weight[..., None]
        self._weight[top:bottom, left:right] += weight

    def result_rows(self, y0: int, y1: int) -> FloatArray:
        """The blended rows ``y0`` to ``y1`` (exclusive), a new (y1 - y0, W, channels) float32 array.

        Every tile that touches these rows must have been added.

        Raises:
            RuntimeError: some of their pixels are covered by no tile (not in ``compat_upstream``, where pixels of
                weight zero are ordinary), or :meth:`finish` was called.
        """
        return self._accumulated()[y0:y1] / self._divisor(y0, y1)

    def finish(self) -> FloatArray:
        """The whole blended image, (H, W, channels) float32, divided in place: the blender is spent afterwards.

        Raises:
            RuntimeError: as :meth:`result_rows`.
        """
        total = self._accumulated()
        total /= self._divisor(0, self.size.height)
        self._sum = None
        return total

    def _accumulated(self) -> FloatArray:
        if self._sum is None:
            raise RuntimeError("this blender is finished")
        return self._sum

    def _divisor(self, y0: int, y1: int) -> FloatArray:
        weight = self._weight[y0:y1, :, None]
        if self._compat_upstream:
            return weight + _COMPAT_EPSILON
        # No epsilon: in a photo's corner a single weight can be 4e-6, and 1e-8 more would darken it by 0.3 %.
        if not (weight > 0).all():
            raise RuntimeError(f"rows {y0} to {y1} are not covered by the tiles that were added")
        return weight
