"""Tile plans: upstream's facts, and the properties of every plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from livemoments.errors import UsageError
from livemoments.runtime.tiles.plan import TilePlan, plan_balanced, plan_upstream, suggest_tile
from livemoments.types import Size, Tile

PHOTO = Size(height=3072, width=4096)

sizes = st.builds(Size, st.integers(1, 700), st.integers(1, 700))
tiles = st.builds(Size, st.integers(16, 300), st.integers(16, 300))
overlaps = st.integers(0, 80)


def check_covers(plan: TilePlan) -> None:
    """Every pixel lies in a tile, no tile leaves the padded photo, and neighbours overlap as asked."""
    covered = np.zeros((plan.padded.height, plan.padded.width), bool)
    for index, tile in enumerate(plan.tiles):
        assert tile.index == index
        assert tile.size == plan.tile
        assert tile.y >= 0
        assert tile.x >= 0
        assert tile.y + tile.height <= plan.padded.height
        assert tile.x + tile.width <= plan.padded.width
        covered[tile.window] = True
    assert covered.all()
    assert plan.padded.height >= plan.size.height
    assert plan.padded.width >= plan.size.width
    rows, columns = (sorted({tile.y for tile in plan.tiles}), sorted({tile.x for tile in plan.tiles}))
    assert [(tile.y, tile.x) for tile in plan.tiles] == list(itertools.product(rows, columns))
    for starts, length in ((rows, plan.tile.height), (columns, plan.tile.width)):
        for first, second in itertools.pairwise(starts):
            assert first < second <= first + length - plan.overlap


def test_upstream_full_photo() -> None:
    plan = plan_upstream(PHOTO, Size(1024, 1024), 64)
    assert plan.padded == Size(height=3904, width=4864)
    assert len(plan.tiles) == 20
    assert plan.tiles[6] == Tile(6, 960, 960, 1024, 1024)
    assert plan.is_padded
    assert plan.computed_px == 20 * 1024 * 1024


def test_upstream_small_photo() -> None:
    plan = plan_upstream(Size(384, 512), Size(256, 256), 32)
    assert plan.padded == Size(480, 704)
    assert [(tile.y, tile.x) for tile in plan.tiles] == [(0, 0), (0, 224), (0, 448), (224, 0), (224, 224), (224, 448)]


@given(size=sizes, tile=tiles, overlap=overlaps)
@settings(max_examples=150, deadline=None)
def test_upstream_covers_any_photo(size: Size, tile: Size, overlap: int) -> None:
    assume(overlap < min(tile.height, tile.width))
    plan = plan_upstream(size, tile, overlap)
    check_covers(plan)
    for length, padded, side in (
        (size.height, plan.padded.height, tile.height),
        (size.width, plan.padded.width, tile.width),
    ):
        stride = side - overlap
        assert (padded - overlap) % stride == 0
        if length > overlap:
            assert padded - length < stride


@given(size=sizes, choices=st.lists(tiles, min_size=1, max_size=4), overlap=overlaps, pad_small=st.booleans())
@settings(max_examples=200, deadline=None)
def test_balanced_covers_any_photo(size: Size, choices: list[Size], overlap: int, pad_small: bool) -> None:
    assume(all(overlap < min(tile.height, tile.width) for tile in choices))
    fitting = [tile for tile in choices if tile.height <= size.height and tile.width <= size.width]
    if not fitting and not pad_small:
        with pytest.raises(UsageError, match="pad-small"):
            plan_balanced(size, choices, overlap)
        return
    plan = plan_balanced(size, choices, overlap, pad_small=pad_small)
    check_covers(plan)
    assert plan.tile in choices
    assert plan.is_padded == (not fitting)
    last = plan.tiles[-1]
    assert (last.y + last.height, last.x + last.width) == (plan.padded.height, plan.padded.width)
    for tile in fitting:
        alone = plan_balanced(size, [tile], overlap)
        assert (len(plan.tiles), plan.computed_px) <= (len(alone.tiles), alone.computed_px)


def test_balanced_is_even_and_minimal() -> None:
    plan = plan_balanced(PHOTO, [Size(1072, 1072)], 64)
    assert (len(plan.tiles), plan.padded) == (12, PHOTO)
    assert sorted({tile.y for tile in plan.tiles}) == [0, 1000, 2000]
    assert sorted({tile.x for tile in plan.tiles}) == [0, 1008, 2016, 3024]
    # One pixel less of either side needs another row or column of tiles.
    assert len(plan_balanced(PHOTO, [Size(1066, 1072)], 64).tiles) == 16
    assert len(plan_balanced(PHOTO, [Size(1072, 1071)], 64).tiles) == 15


def test_balanced_chooses_the_fewest_tiles_then_the_fewest_pixels() -> None:
    choices = [Size(512, 512), Size(1280, 1280), Size(1072, 1072), Size(1024, 1024)]
    assert plan_balanced(PHOTO, choices, 64).tile == Size(1072, 1072)


def test_a_small_photo_names_both_sizes() -> None:
    with pytest.raises(UsageError, match=r"300x200 pixels.*256x256, 320x192") as caught:
        plan_balanced(Size(200, 300), [Size(256, 256), Size(192, 320)], 32)
    assert caught.value.fix == "export with a smaller --tile, or pass --pad-small"
    plan = plan_balanced(Size(200, 300), [Size(512, 512), Size(256, 256)], 32, pad_small=True)
    assert (plan.tile, plan.padded) == (Size(256, 256), Size(height=256, width=300))


@pytest.mark.parametrize("overlap", [-1, 256, 300])
def test_an_overlap_that_does_not_fit(overlap: int) -> None:
    with pytest.raises(UsageError, match="overlap"):
        plan_upstream(Size(512, 512), Size(256, 256), overlap)
    with pytest.raises(UsageError, match="overlap"):
        plan_balanced(Size(512, 512), [Size(256, 256)], overlap)


def test_no_tile_sizes() -> None:
    with pytest.raises(UsageError, match="no tile size"):
        plan_balanced(PHOTO, [], 64)


def test_suggested_tile_for_a_photo() -> None:
    assert suggest_tile(PHOTO, overlap=64) == Size(1072, 1072)


@given(
    size=st.builds(Size, st.integers(1, 6000), st.integers(1, 6000)),
    overlap=st.sampled_from([0, 32, 64]),
    around_px=st.sampled_from([256, 512, 1024]),
)
@settings(max_examples=200, deadline=None)
def test_suggested_tile_fits_and_is_the_best_of_its_range(size: Size, overlap: int, around_px: int) -> None:
    tile = suggest_tile(size, overlap=overlap, around_px=around_px)
    assert tile.height % 16 == tile.width % 16 == 0
    assert min(tile.height, tile.width) > overlap
    if min(size.height, size.width) // 16 * 16 > overlap:
        plan = plan_balanced(size, [tile], overlap)
        # Brute force over every multiple of 16 in the range, where one fits.
        for length, side, count in (
            (size.height, tile.height, len({t.y for t in plan.tiles})),
            (size.width, tile.width, len({t.x for t in plan.tiles})),
        ):
            first, last = -(-around_px * 3 // 4 // 16) * 16, min(around_px * 9 // 8, length)
            costs = [
                other * (1 if other == length else -(-(length - overlap) // (other - overlap)))
                for other in range(first, last + 1, 16)
                if other > overlap
            ]
            if costs and first <= side <= last:
                assert count * side == min(costs)


@pytest.mark.parametrize("arguments", [{"around_px": 0, "overlap": 0}, {"overlap": -1}, {"overlap": 0, "multiple": 0}])
def test_suggestions_for_nonsense(arguments: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        suggest_tile(PHOTO, **arguments)
