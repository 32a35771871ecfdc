"""A tile's noise: from a seed, the same in every order; or from a recording."""

from __future__ import annotations

import numpy as np
import pytest

from livemoments.errors import UsageError
from livemoments.runtime.noise import RecordedNoise, SeededNoise, TileNoise
from livemoments.types import Tile

SHAPE = (16, 8, 6)
PARTS = ("posterior_lr", "posterior_ref", "initial")
TILES = [Tile(i, y, x, 64, 48) for i, (y, x) in enumerate([(0, 0), (0, 32), (48, 0), (48, 32)])]


def values(noise: TileNoise) -> np.ndarray:
    return np.stack([getattr(noise, part) for part in PARTS])


def test_the_order_of_tiles_changes_nothing() -> None:
    source = SeededNoise(7)
    forward = [values(source.draw(tile, SHAPE)) for tile in TILES]
    backward = [values(source.draw(tile, SHAPE)) for tile in reversed(TILES)][::-1]
    assert np.array_equal(forward, backward)
    assert np.array_equal(forward, [values(SeededNoise(7).draw(tile, SHAPE)) for tile in TILES])


def test_seeds_tiles_and_parts_differ() -> None:
    drawn = [values(SeededNoise(seed).draw(tile, SHAPE)) for seed in (0, 1) for tile in TILES]
    flat = np.concatenate(drawn).reshape(len(drawn) * len(PARTS), -1)
    correlation = np.corrcoef(flat)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 0.2


def test_corner_not_index_decides() -> None:
    moved = Tile(5, TILES[1].y, TILES[1].x, 64, 48)
    assert np.array_equal(values(SeededNoise(3).draw(TILES[1], SHAPE)), values(SeededNoise(3).draw(moved, SHAPE)))
    assert not np.array_equal(
        SeededNoise(3).draw(Tile(0, 8, 16, 64, 48), SHAPE).initial,
        SeededNoise(3).draw(Tile(0, 16, 8, 64, 48), SHAPE).initial,
    )


def test_noise_is_standard_normal_float32() -> None:
    noise = values(SeededNoise(11).draw(TILES[0], (16, 64, 64)))
    assert noise.dtype == np.float32
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.std()) - 1) < 0.01


def test_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="-1"):
        SeededNoise(-1)


def test_recorded_noise_is_given_back_by_index() -> None:
    rng = np.random.default_rng(0)
    recorded = {i: TileNoise(*rng.standard_normal((3, *SHAPE)).astype(np.float32)) for i in (0, 2)}
    source = RecordedNoise(recorded)
    assert source.draw(TILES[2], SHAPE) is recorded[2]
    with pytest.raises(UsageError, match="tile 1"):
        source.draw(TILES[1], SHAPE)
    with pytest.raises(UsageError, match="posterior_lr"):
        source.draw(TILES[0], (16, 8, 8))
