"""Where a tile's random numbers come from: a seed, or a recording. Nothing else in the runtime draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from livemoments.errors import UsageError
from livemoments.types import Tile


@dataclass(frozen=True)
class TileNoise:
    """The standard normal numbers of one tile, each (C, h, w) float32, in the order in which they are drawn.

    Upstream draws them in this order too (UPSTREAM.md, "One tile", 4).
    """

    posterior_lr: np.ndarray
    posterior_ref: np.ndarray
    initial: np.ndarray


class NoiseSource(Protocol):
    """Gives every tile its noise, whatever the order in which tiles come."""

    def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
        """The noise of one tile; the same for every call with the same tile. ``latent_shape`` is (C, h, w)."""


class SeededNoise:
    """Noise from a seed and the tile's corner: neither the order of tiles nor the batch size changes it.

    Args:
        seed: 0 or more; the same seed gives the same picture.

    Raises:
        UsageError: the seed is negative.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise UsageError(f"the seed {seed} is negative", fix="use 0 or more")
        self.seed = seed

    def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
        """The tile's three standard normal arrays, each of ``latent_shape`` (16, h, w), float32."""
        key = np.random.SeedSequence([self.seed, tile.y, tile.x])
        generator = np.random.Generator(np.random.Philox(key))
        return TileNoise(*(generator.standard_normal(latent_shape, dtype=np.float32) for _ in range(3)))


class RecordedNoise:
    """Noise that was recorded elsewhere, for parity with another implementation.

    Args:
        tiles: the noise of every tile, by :attr:`Tile.index`.
    """

    def __init__(self, tiles: Mapping[int, TileNoise]) -> None:
        self._tiles = dict(tiles)

    def draw(self, tile: Tile, latent_shape: tuple[int, int, int]) -> TileNoise:
        """The recorded noise.

        Raises:
            UsageError: nothing was recorded for this tile, or in another shape.
        """
        noise = self._tiles.get(tile.index)
        if noise is None:
            raise UsageError(
                f"the recording has no noise for tile {tile.index}; it has {len(self._tiles)} tiles",
                fix="use the recording's images, tile size and overlap",
            )
        for name in ("posterior_lr", "posterior_ref", "initial"):
            shape = getattr(noise, name).shape
            if shape != latent_shape:
                raise UsageError(
                    f"tile {tile.index}'s recorded noise '{name}' is {shape}, the bundle wants {latent_shape}"
                )
        return noise
