"""PCR: the mean flow of a tile and the reference tile's corner."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from livemoments.errors import EngineError, UsageError
from livemoments.runtime.tiles.correspondence import FlowField, mean_flow, reference_corner
from livemoments.runtime.tiles.plan import plan_upstream
from livemoments.types import Size, Tile

LIMIT_MEAN_PX = 1e-5


def test_mean_flow_equals_float64() -> None:
    flow = np.random.default_rng(1).normal(40, 9, (203, 171, 2)).astype(np.float32)
    exact = flow.astype(np.float64).mean(axis=(0, 1))
    np.testing.assert_allclose(mean_flow(flow), exact, rtol=2e-7)


def test_field_equals_torch_resized_and_zero_padded() -> None:
    flow = np.random.default_rng(2).normal(0, 20, (60, 80, 2)).astype(np.float32)
    size = Size(height=150, width=240)
    plan = plan_upstream(size, Size(96, 96), 16)
    tensor = torch.from_numpy(flow).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, size=(150, 240), mode="bicubic", align_corners=False)
    resized *= torch.tensor([240 / 80, 150 / 60]).view(1, 2, 1, 1)
    padded = F.pad(resized, (0, plan.padded.width - 240, 0, plan.padded.height - 150))[0].double()
    field = FlowField(flow, size)
    for tile in plan.tiles:
        expected = padded[:, tile.y : tile.y + 96, tile.x : tile.x + 96].mean(dim=(1, 2))
        np.testing.assert_allclose(field.mean(tile), expected.numpy(), rtol=0, atol=LIMIT_MEAN_PX)
        assert field.window(tile).shape == (96, 96, 2)


def test_a_pure_shift_moves_the_corner() -> None:
    flow = np.tile(np.array([3.0, -1.75], np.float32), (40, 30, 1))
    tile = Tile(0, 10, 20, 64, 64)
    mean = FlowField(flow, Size(height=80, width=90)).mean(tile)
    np.testing.assert_allclose(mean, (9.0, -3.5), rtol=2e-7)  # x three times, y twice as far as in the video
    assert reference_corner(tile, (9.0, -3.5), Size(height=80, width=100))[:2] == (6, 29)


def test_no_motion_is_exactly_none() -> None:
    tile = Tile(0, 37, 11, 64, 64)
    mean = FlowField(np.zeros((40, 30, 2), np.float32), Size(133, 99)).mean(tile)
    assert reference_corner(tile, mean, Size(133, 99)) == (37, 11, False)


@pytest.mark.parametrize(
    ("corner", "mean", "expected"),
    [
        ((100, 200), (7.99, 3.2), (103, 207, False)),  # (dx, dy); the fraction is cut off
        ((100, 200), (-7.01, -3.2), (96, 192, False)),
        ((100, 200), (0.0, 0.0), (100, 200, False)),
        ((0, 0), (-0.9, -0.9), (0, 0, False)),  # truncated toward zero, not clamped
        ((0, 0), (-1.0, 0.0), (0, 0, True)),
        ((100, 200), (-500.0, 900.0), (435, 0, True)),
        ((435, 635), (1.0, 0.5), (435, 635, True)),
    ],
)
def test_corner(corner: tuple[int, int], mean: tuple[float, float], expected: tuple[int, int, bool]) -> None:
    # An odd tile: upstream adds and takes away the same floored half.
    tile = Tile(0, *corner, 65, 65)
    assert reference_corner(tile, mean, Size(height=500, width=700)) == expected


def test_flow_that_is_not_finite() -> None:
    flow = np.zeros((16, 16, 2), np.float32)
    flow[3, 4, 1] = np.nan
    with pytest.raises(EngineError, match="not finite"):
        FlowField(flow, Size(32, 32)).mean(Tile(0, 0, 0, 32, 32))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"\(height, width, 2\)"):
        FlowField(np.zeros((16, 16, 3), np.float32), Size(32, 32))
    with pytest.raises(UsageError, match="does not fit"):
        reference_corner(Tile(0, 0, 0, 64, 64), (0.0, 0.0), Size(32, 128))


def test_corners_go_to_the_nearest_place_of_a_grid() -> None:
    bounds, rng = Size(500, 700), np.random.default_rng()
    for _ in range(50):
        grid = int(rng.integers(1, 40))
        tile = Tile(0, int(rng.integers(0, 400)), int(rng.integers(0, 600)), 96, 64)
        dx, dy = (float(shift) for shift in rng.uniform(-30, 30, 2))
        exact, found = reference_corner(tile, (dx, dy), bounds), reference_corner(tile, (dx, dy), bounds, grid)
        for axis, limit in ((0, 500 - 96), (1, 700 - 64)):
            assert found[axis] % grid == 0 or found[axis] in (0, limit)
            assert exact.clamped or abs(found[axis] - exact[axis]) <= grid / 2
        assert grid > 1 or found == exact
