"""Deep metrics see tiles: whole photos of 12 megapixels do not fit them.

A picture is divided into tiles without overlap and without remainder, all about equally large; a metric of the picture
is the mean over the tiles, weighted by their areas. That is another number than the network's on the whole picture, so
the metrics' titles say "tiles".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from livemoments.types import Size, Tile
from livemoments.validate.quality.luma import full_scale

Value = TypeVar("Value", float, np.ndarray)

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


def unit(pixels: np.ndarray) -> np.ndarray:
    """A part of a picture as float32 in [0, 1].

    Raises:
        UsageError: the array is no RGB picture.
    """
    return np.clip(pixels.astype(np.float32) / np.float32(full_scale(pixels)), 0, 1)


def patches(pixels: np.ndarray, side_px: int) -> Iterator[np.ndarray]:
    """The whole squares of a picture from its top left corner on, what remains at the right and bottom left out."""
    full_scale(pixels)
    height, width = pixels.shape[:2]
    for y in range(0, height - side_px + 1, side_px):
        for x in range(0, width - side_px + 1, side_px):
            yield unit(pixels[y : y + side_px, x : x + side_px])


def tile_mean(measure: Callable[..., Value], *pictures: np.ndarray, longest_px: int = TILE_PX) -> Value:
    """The mean of what is measured on the tiles of pictures of one size, weighted by area.

    Args:
        measure: takes a tile of every picture, (h, w, 3) float32 in [0, 1] each; gives a number or an array.
        pictures: (H, W, 3) RGB.
        longest_px: side of the tiles.

    Raises:
        UsageError: an array is no RGB picture.
    """
    full_scale(pictures[0])
    height, width = pictures[0].shape[:2]
    places = divide(Size(height, width), longest_px)
    areas = [place.height * place.width for place in places]
    values = [measure(*(unit(picture[place.window]) for picture in pictures)) for place in places]
    mean = np.average(values, axis=0, weights=areas)
    plain: Any = float(mean) if np.ndim(mean) == 0 else mean
    return plain


def direction(features: np.ndarray) -> np.ndarray:
    """Features at unit length, (d,) float64."""
    wide = features.astype(np.float64)
    return wide / max(float(np.linalg.norm(wide)), 1e-12)


def _borders(length: int, longest_px: int) -> list[int]:
    count = math.ceil(length / longest_px)
    return [index * length // count for index in range(count + 1)]
