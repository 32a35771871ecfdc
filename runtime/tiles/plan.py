"""Which tiles cover a photo: upstream's padding to whole strides, or evenly spread tiles without padding.

A plan is data: the tiles' rectangles in row-major order, and the size up to which the images count as padded at the
right and bottom (by reflection; the flow by zeros). Both kinds come from :func:`plan_upstream` (UPSTREAM.md, "One
photo", 3) and :func:`plan_balanced`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from livemoments.errors import UsageError
from livemoments.types import Size, Tile

# How far the tile that suggest_tile() finds may be from what was asked for, as a ratio of lengths. A network's memory
# grows with the area, hence less room above (1.27 times the area) than below.
_SMALLEST_RATIO = 3 / 4
_LARGEST_RATIO = 9 / 8


@dataclass(frozen=True, slots=True)
class TilePlan:
    """The tiles of one photo.

    Attributes:
        kind: ``upstream`` or ``balanced``.
        size: the photo's size in pixels.
        padded: the size that the tiles cover; larger than ``size`` where tiles reach beyond the right or bottom edge.
        tile: every tile's size in pixels.
        overlap: the least overlap of neighbouring tiles that was asked for, in pixels.
        tiles: row-major.
    """

    kind: Literal["upstream", "balanced"]
    size: Size
    padded: Size
    tile: Size
    overlap: int
    tiles: tuple[Tile, ...]

    @property
    def computed_px(self) -> int:
        """The pixels that the networks compute: tiles times their area."""
        return len(self.tiles) * self.tile.height * self.tile.width

    @property
    def is_padded(self) -> bool:
        """Whether some tile reaches beyond the photo."""
        return self.padded != self.size


def plan_upstream(size: Size, tile: Size, overlap: int) -> TilePlan:
    """Plan as upstream does: tiles every ``tile - overlap`` pixels, the photo padded up to whole strides.

    The pad of an axis of length L is ``(stride - (L - overlap) % stride) % stride`` (UPSTREAM.md): 3072 x 4096 with
    1024-pixel tiles and overlap 64 becomes 3904 x 4864, 4 x 5 tiles. Photos shorter than a tile, on which upstream
    fails, get one tile.

    Args:
        size: the photo's size in pixels.
        tile: the tiles' size in pixels.
        overlap: pixels by which neighbouring tiles overlap at least.

    Raises:
        UsageError: the overlap is negative or not smaller than the tile.
    """
    _check_overlap(tile, overlap)
    rows, padded_height = _upstream_axis(size.height, tile.height, overlap)
    columns, padded_width = _upstream_axis(size.width, tile.width, overlap)
    padded = Size(padded_height, padded_width)
    return TilePlan("upstream", size, padded, tile, overlap, _row_major(rows, columns, tile))


def plan_balanced(
    size: Size, tile_sizes: Sequence[Size], overlap: int, *, pad_small: bool = False, source: str = "the bundle"
) -> TilePlan:
    """Plan the fewest tiles that cover the photo, evenly spread from edge to edge, without padding.

    Of the given sizes the one with the fewest tiles is chosen, then the one with the fewest computed pixels. The first
    tile lies at 0, the last ends at the photo's edge; neighbours overlap by ``overlap`` pixels or more.

    Args:
        size: the photo's size in pixels.
        tile_sizes: the sizes that can be computed; a plan uses one of them.
        overlap: the least overlap of neighbouring tiles, in pixels.
        pad_small: where the photo is smaller than every tile in some axis, plan as if it were padded at the right and
            bottom to the tile that needs the least padding, instead of raising.
        source: who offers the tile sizes, for the message.

    Raises:
        UsageError: no size was given, an overlap is negative or not smaller than a tile, or the photo is smaller than
            every tile size.
    """
    if not tile_sizes:
        raise UsageError(f"{source} names no tile size")
    for tile in tile_sizes:
        _check_overlap(tile, overlap)
    fitting = [tile for tile in tile_sizes if tile.height <= size.height and tile.width <= size.width]
    if not fitting and not pad_small:
        sizes = ", ".join(str(tile) for tile in dict.fromkeys(tile_sizes))
        raise UsageError(
            f"the photo is {size} pixels, smaller than every tile size of {source} ({sizes})",
            fix="export with a smaller --tile, or pass --pad-small",
        )
    plans = [_balanced(size, tile, overlap) for tile in fitting or tile_sizes]
    return min(plans, key=lambda plan: (_padding_px(plan), len(plan.tiles), plan.computed_px))


def suggest_tile(size: Size, *, overlap: int, around_px: int = 1024, multiple: int = 16) -> Size:
    """Find the tile shape that covers a photo with the fewest computed pixels, for tiles of about one size.

    Args:
        size: the photo's size in pixels.
        overlap: the least overlap of neighbouring tiles, in pixels.
        around_px: the length that a tile's sides should have, about (3/4 to 9/8 of it where possible).
        multiple: both sides are multiples of this; 16 is the VAE's factor 8 times the transformers' patch of 2.

    Returns:
        A tile for :func:`plan_balanced`; 1072x1072 for a 3072 x 4096 photo and overlap 64 (3 x 4 tiles). It fits the
        photo, unless the photo is too small for any tile longer than the overlap.

    Raises:
        UsageError: an argument is not positive, or the overlap is negative.
    """
    if min(size.height, size.width, around_px, multiple) < 1 or overlap < 0:
        raise UsageError("photo size, tile size and multiple must be positive, and the overlap not negative")
    height = _suggest_length(size.height, overlap, around_px, multiple)
    return Size(height, _suggest_length(size.width, overlap, around_px, multiple))


def _check_overlap(tile: Size, overlap: int) -> None:
    if not 0 <= overlap < min(tile.height, tile.width):
        raise UsageError(
            f"an overlap of {overlap} pixels does not fit tiles of {tile}",
            fix="use an overlap that is at least 0 and smaller than the tile",
        )


def _upstream_axis(length: int, tile: int, overlap: int) -> tuple[list[int], int]:
    """The tiles' first pixels along one axis, and the padded length."""
    stride = tile - overlap
    padded = max(tile, length + (stride - (length - overlap) % stride) % stride)
    return list(range(0, padded - tile + 1, stride)), padded


def _balanced_axis(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest tiles that cover ``length >= tile``, the gaps between them equal to a pixel."""
    count = 1 if length == tile else math.ceil((length - overlap) / (tile - overlap))
    if count == 1:
        return [0]
    # Rounded down, two neighbours lie at most ceil(slack / (count - 1)) <= tile - overlap apart.
    slack = length - tile
    return [index * slack // (count - 1) for index in range(count)]


def _balanced(size: Size, tile: Size, overlap: int) -> TilePlan:
    padded = Size(max(size.height, tile.height), max(size.width, tile.width))
    rows = _balanced_axis(padded.height, tile.height, overlap)
    columns = _balanced_axis(padded.width, tile.width, overlap)
    return TilePlan("balanced", size, padded, tile, overlap, _row_major(rows, columns, tile))


def _padding_px(plan: TilePlan) -> int:
    return plan.padded.height * plan.padded.width - plan.size.height * plan.size.width


def _row_major(rows: list[int], columns: list[int], tile: Size) -> tuple[Tile, ...]:
    corners = [(y, x) for y in rows for x in columns]
    return tuple(Tile(index, y, x, tile.height, tile.width) for index, (y, x) in enumerate(corners))


def _suggest_length(length: int, overlap: int, around_px: int, multiple: int) -> int:
    """The tile length along one axis; see :func:`suggest_tile`."""
    candidates: list[tuple[int, int]] = []  # (computed pixels, tile length)
    for count in range(1, length + 1):
        exact = math.ceil((length + (count - 1) * overlap) / count)
        tile = math.ceil(exact / multiple) * multiple
        if tile <= overlap or tile < _SMALLEST_RATIO * around_px / 4:
            break  # more tiles are smaller still
        if tile <= length:
            candidates.append((count * tile, tile))
    if not candidates:
        return _smallest_fitting(length, overlap, multiple)
    near = [entry for entry in candidates if _SMALLEST_RATIO <= entry[1] / around_px <= _LARGEST_RATIO]
    if near:
        return min(near)[1]
    return min(candidates, key=lambda entry: (abs(math.log(entry[1] / around_px)), entry[0]))[1]


def _smallest_fitting(length: int, overlap: int, multiple: int) -> int:
    """For an axis that no tile of about the wanted size fits: the longest that does, else one that is padded."""
    inside = length // multiple * multiple
    return inside if inside > overlap else math.ceil(max(length, overlap + 1) / multiple) * multiple
