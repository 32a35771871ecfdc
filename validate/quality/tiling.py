"""Deep metrics see tiles: whole photos of 12 megapixels do not fit them.

A picture is divided into tiles without overlap and without remainder, all about equally large; a metric of the picture
is the mean over the tiles, weighted by their areas. That is another number than the network's on the whole picture, so
the metrics' titles say "tiles".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from livemoments.types import Size, Tile
from livemoments.validate.quality.luma import full_scale

TILE_PX = 1024
"""Longest side of a tile, the model's own; the shorter ones are longer than half of it in larger pictures."""


def divide(size: Size, longest_px: int = TILE_PX) -> tuple[Tile, ...]:
    """Divide a picture into the fewest rows and columns of tiles whose sides are at most ``longest_px``."""
    rows, columns = (_borders(length, longest_px) for length in (size.height, size.width))
    corners = [
        (top, left, bottom - top, right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]
    return tuple(Tile(index, *corner) for index, corner in enumerate(corners))


def unit_tiles(pixels: np.ndarray, longest_px: int = TILE_PX) -> Iterator[tuple[Tile, np.ndarray]]:
    """The tiles of an (H, W, 3) picture, each as (h, w, 3) float32 in [0, 1].

    Raises:
        UsageError: the array is no RGB picture.
    """
    white = full_scale(pixels)
    for tile in divide(Size(*pixels.shape[:2]), longest_px):
        yield tile, np.clip(pixels[tile.window].astype(np.float32) / np.float32(white), 0, 1)


def patches(pixels: np.ndarray, side_px: int) -> Iterator[np.ndarray]:
    """The whole squares of a picture from its top left corner on, what remains at the right and bottom left out."""
    white = full_scale(pixels)
    height, width = pixels.shape[:2]
    for y in range(0, height - side_px + 1, side_px):
        for x in range(0, width - side_px + 1, side_px):
            patch = pixels[y : y + side_px, x : x + side_px].astype(np.float32)
            yield np.clip(patch / np.float32(white), 0, 1)


def solo_mean(metric: Callable[[np.ndarray], float], value: np.ndarray, longest_px: int = TILE_PX) -> float:
    """The mean of a score over a picture's tiles, weighted by area."""
    total = math.fsum(metric(tile) * place.height * place.width for place, tile in unit_tiles(value, longest_px))
    return total / (value.shape[0] * value.shape[1])


def pair_mean(
    metric: Callable[[np.ndarray, np.ndarray], float],
    value: np.ndarray,
    reference: np.ndarray,
    longest_px: int = TILE_PX,
) -> float:
    """The mean of a distance over the tiles of two pictures of one size, weighted by area."""
    pairs = zip(unit_tiles(value, longest_px), unit_tiles(reference, longest_px), strict=True)
    total = math.fsum(metric(tile, other) * place.height * place.width for (place, tile), (_, other) in pairs)
    return total / (value.shape[0] * value.shape[1])


def mean_features(
    encode: Callable[[np.ndarray], np.ndarray], value: np.ndarray, longest_px: int = TILE_PX
) -> np.ndarray:
    """The mean of the tiles' features at unit length, weighted by area: (d,) float64."""
    total = np.zeros(1)
    for place, tile in unit_tiles(value, longest_px):
        features = encode(tile).astype(np.float64)
        total = total + place.height * place.width * features / max(float(np.linalg.norm(features)), 1e-12)
    return total / (value.shape[0] * value.shape[1])


def _borders(length: int, longest_px: int) -> list[int]:
    count = math.ceil(length / longest_px)
    return [index * length // count for index in range(count + 1)]
