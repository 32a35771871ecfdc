"""The seam score: how much steeper a picture is across its tiles' borders than right beside them.

At every border of a tile inside the picture, the mean absolute difference of y between the two pixels that face each
other is compared with the mean of the differences 2 to 8 pixels away on both sides, in the same direction and along the
same line of pixels: the same content, without the border. 1 means that borders cannot be told from their surroundings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from livemoments.types import Size, Tile
from livemoments.validate.quality.luma import Luma, full_scale, luma_of

FARTHEST_PX = 8
FLOOR_LEVELS = 0.05
"""Added to both means, of 255 levels: in flat areas rounding is no seam."""


@dataclass(frozen=True, slots=True)
class Border:
    """A line between pixels that is some tiles' border.

    Attributes:
        vertical: between columns ``position - 1`` and ``position``; otherwise between those rows.
        position: in pixels.
        start, stop: the rows (or columns) along which it runs.
    """

    vertical: bool
    position: int
    start: int
    stop: int


def seam_score(pixels: np.ndarray, tiles: Iterable[Tile], luma: Luma = Luma.BT601_STUDIO) -> float | None:
    """The score of a picture, over all borders together, weighted by their lengths.

    Args:
        pixels: (H, W, 3) RGB, uint8, uint16, or float in [0, 1].
        tiles: the plan that the picture was made with; what lies outside of the picture does not count.
        luma: the convention of y.

    Returns:
        ``None`` where no border lies inside the picture (a single tile).

    Raises:
        UsageError: the array is no RGB picture.
    """
    full_scale(pixels)
    borders = find_borders(tiles, Size(*pixels.shape[:2]))
    rows = []
    for border in borders:
        across, beside = _steepness(pixels, border, borders, luma)
        if beside is not None:
            rows.append((across, beside, border.stop - border.start))
    if not rows:
        return None
    acrosses, besides, lengths = np.array(rows).T
    return float(
        (np.average(acrosses, weights=lengths) + FLOOR_LEVELS) / (np.average(besides, weights=lengths) + FLOOR_LEVELS)
    )


def find_borders(tiles: Iterable[Tile], size: Size) -> tuple[Border, ...]:
    """The borders of tiles inside a picture, each line once: pieces that touch or overlap are joined."""
    lines: dict[tuple[bool, int], list[tuple[int, int]]] = {}
    for tile in tiles:
        rows = (max(tile.y, 0), min(tile.y + tile.height, size.height))
        columns = (max(tile.x, 0), min(tile.x + tile.width, size.width))
        for x in (tile.x, tile.x + tile.width):
            if 0 < x < size.width and rows[0] < rows[1]:
                lines.setdefault((True, x), []).append(rows)
        for y in (tile.y, tile.y + tile.height):
            if 0 < y < size.height and columns[0] < columns[1]:
                lines.setdefault((False, y), []).append(columns)
    return tuple(Border(*line, *piece) for line, pieces in sorted(lines.items()) for piece in _joined(sorted(pieces)))


def _joined(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined = pieces[:1]
    for start, stop in pieces[1:]:
        if start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _steepness(
    pixels: np.ndarray, border: Border, borders: tuple[Border, ...], luma: Luma
) -> tuple[float, float | None]:
    """Mean absolute difference of y across a border, and of the lines beside it that are no border themselves."""
    length = pixels.shape[1] if border.vertical else pixels.shape[0]
    first = max(border.position - FARTHEST_PX - 1, 0)
    last = min(border.position + FARTHEST_PX + 1, length)
    along, over = slice(border.start, border.stop), slice(first, last)
    plane = luma_of(pixels[along, over] if border.vertical else pixels[over, along], luma)
    steps = np.abs(np.diff(plane, axis=1 if border.vertical else 0)).mean(axis=0 if border.vertical else 1)
    # steps[i] lies between the pixels first + i and first + i + 1: at the line first + i + 1
    taken = {other.position for other in borders if other.vertical == border.vertical}
    beside = [
        float(step)
        for line, step in enumerate(steps, first + 1)
        if not any(line + offset in taken for offset in (-1, 0, 1))  # this border is one of them: 2 pixels and more
    ]
    return float(steps[border.position - first - 1]), float(np.mean(beside)) if beside else None
