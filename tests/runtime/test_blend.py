"""Blending: weights, the weighted mean, and the border that upstream greys."""

from __future__ import annotations

import numpy as np
import pytest

from livemoments.errors import UsageError
from livemoments.runtime.tiles.blend import Blender, tile_weight
from livemoments.runtime.tiles.plan import TilePlan, plan_balanced, plan_upstream
from livemoments.types import Size, Tile

SIZE = Size(height=150, width=211)
TILE = Size(height=64, width=80)
LIMIT_ABSOLUTE = 3e-6


def plans() -> list[TilePlan]:
    return [plan_upstream(SIZE, TILE, 16), plan_balanced(SIZE, [TILE], 16)]


def axis(length: int, compat: bool) -> np.ndarray:
    x = np.linspace(-1, 1, length) if compat else (np.arange(length) + 0.5) * 2 / length - 1
    return 1 - x**2


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("length", [(64, 80), (33, 7)])
def test_weight_formula(length: tuple[int, int], compat: bool) -> None:
    weight = tile_weight(Size(*length), compat_upstream=compat)
    assert weight.shape == length
    assert weight.dtype == np.float32
    np.testing.assert_allclose(weight, np.outer(axis(length[0], compat), axis(length[1], compat)), rtol=0, atol=3e-7)
    assert (weight.min() == 0) == compat


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("plan", plans(), ids=lambda plan: plan.kind)
def test_blend_equals_the_float64_formula(plan: TilePlan, compat: bool) -> None:
    rng = np.random.default_rng(1)
    weight = np.outer(axis(TILE.height, compat), axis(TILE.width, compat))[..., None]
    total = np.zeros((plan.padded.height, plan.padded.width, 3))
    weights = np.zeros((plan.padded.height, plan.padded.width, 1))
    blender = Blender(SIZE, compat_upstream=compat)
    for tile in plan.tiles:
        values = rng.uniform(-1, 1, (*weight.shape[:2], 3)).astype(np.float32)
        blender.add(tile, values)
        total[tile.window] += values * weight
        weights[tile.window] += weight
    expected = (total / (weights + (1e-8 if compat else 0)))[: SIZE.height, : SIZE.width]
    # In compat mode a sum that is zero but for rounding may be anything up to one value: leave such pixels out.
    clear = (weights[: SIZE.height, : SIZE.width, 0] > 1e-4) | (weights[: SIZE.height, : SIZE.width, 0] == 0)
    assert clear.mean() > 0.99
    np.testing.assert_allclose(blender.result_rows(0, SIZE.height)[clear], expected[clear], rtol=0, atol=LIMIT_ABSOLUTE)


@pytest.mark.parametrize("plan", plans(), ids=lambda plan: plan.kind)
def test_a_constant_stays_constant_up_to_the_border(plan: TilePlan) -> None:
    blender = Blender(SIZE)
    for tile in plan.tiles:
        blender.add(tile, np.full((TILE.height, TILE.width, 3), 0.7, np.float32))
    np.testing.assert_allclose(blender.finish(), 0.7, rtol=5e-7)


def test_upstream_greys_the_top_row_and_the_left_column() -> None:
    plan = plan_upstream(SIZE, TILE, 16)
    blender = Blender(SIZE, compat_upstream=True)
    for tile in plan.tiles:
        blender.add(tile, np.ones((TILE.height, TILE.width, 3), np.float32))
    image = blender.finish()
    assert not image[0].any()
    assert not image[:, 0].any()
    np.testing.assert_allclose(image[2:, 2:], 1, rtol=1e-4)


def test_rows_equal_the_finished_image() -> None:
    plan = plan_balanced(SIZE, [TILE], 16)
    rng = np.random.default_rng(2)
    blender = Blender(SIZE, channels=1)
    for tile in plan.tiles:
        blender.add(tile, rng.random((TILE.height, TILE.width, 1), dtype=np.float32))
    rows = np.concatenate([blender.result_rows(y, min(y + 40, SIZE.height)) for y in range(0, SIZE.height, 40)])
    np.testing.assert_array_equal(rows, blender.finish())


def test_the_order_of_tiles_matters_by_rounding_only() -> None:
    plan = plan_balanced(SIZE, [TILE], 16)
    rng = np.random.default_rng(3)
    values = [rng.uniform(-1, 1, (TILE.height, TILE.width, 3)).astype(np.float32) for _ in plan.tiles]
    forward, shuffled = Blender(SIZE), Blender(SIZE)
    for index in range(len(plan.tiles)):
        forward.add(plan.tiles[index], values[index])
    for index in rng.permutation(len(plan.tiles)):
        shuffled.add(plan.tiles[index], values[index])
    np.testing.assert_allclose(forward.finish(), shuffled.finish(), rtol=0, atol=LIMIT_ABSOLUTE)


def test_mistakes_are_not_silent() -> None:
    blender = Blender(Size(64, 100))
    with pytest.raises(UsageError, match="do not fit a tile of 80x64"):
        blender.add(Tile(0, 0, 0, 64, 80), np.zeros((64, 64, 3), np.float32))
    blender.add(Tile(0, 0, 0, 64, 80), np.zeros((64, 80, 3), np.float32))
    blender.add(Tile(1, 64, 0, 64, 80), np.zeros((64, 80, 3), np.float32))  # wholly beyond the photo
    with pytest.raises(RuntimeError, match="not covered"):
        blender.finish()
    blender.add(Tile(2, 0, 20, 64, 80), np.zeros((64, 80, 3), np.float32))
    blender.finish()
    with pytest.raises(RuntimeError, match="finished"):
        blender.result_rows(0, 1)
