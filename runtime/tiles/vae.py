"""The VAE over batches of tiles: a tile at once, or window by window, which takes less memory and changes the picture.

A window's result is not the tile's: every group norm takes its mean and variance over all that the network sees, and
the attention in its middle reads all of it. Nothing but the convolutions has a receptive field that an overlap could
cover, so windows are blended as tiles are, and what that costs is measured (docs/planning.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from livemoments.errors import UsageError
from livemoments.runtime.backends.base import Array, to_host
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.tiles.blend import Blender
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.types import Size, Stage, Tile

WINDOW_OVERLAP = 1 / 4
"""Of a window's shorter side that neighbours overlap at least, as in diffusers' tiled VAE (``tile_overlap_factor``)."""


def vae_windows(tile: Size, window: Size | None, scale: int) -> tuple[Tile, ...]:
    """The windows that cover a tile, in latent pixels; one, the tile itself, where the window is not smaller.

    Args:
        tile: the tile's size in pixels.
        window: the windows'; ``None``: the tile's.
        scale: pixels of the image to one of the latent.

    Raises:
        UsageError: the window is longer than the tile in one axis and shorter in the other.
    """
    whole = Size(tile.height // scale, tile.width // scale)
    if window is None or (window.height >= tile.height and window.width >= tile.width):
        return (Tile(0, 0, 0, whole.height, whole.width),)
    if window.height > tile.height or window.width > tile.width:
        raise UsageError(f"VAE windows of {window} do not fit into tiles of {tile}", fix="use a smaller --vae-tile")
    small = Size(window.height // scale, window.width // scale)
    overlap = int(min(small.height, small.width) * WINDOW_OVERLAP)
    return plan_balanced(whole, [small], overlap, source="the VAE").tiles


class TileVae:
    """Encodes and decodes batches of tiles.

    Args:
        pool: the engines.
        window: pixels that the VAE sees at once; ``None``: a whole tile.

    Raises:
        UsageError: the windows do not fit into the pool's tiles.
    """

    def __init__(self, pool: EnginePool, window: Size | None = None) -> None:
        self._pool = pool
        self._scale = pool.bundle.manifest.model.vae_scale
        self._windows = vae_windows(pool.size, window, self._scale)

    def encode(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images (B,3,H,W) in [-1, 1] -> the posterior's mean and standard deviation, (B,C,h,w) float32 each."""

        def encoded(window: Tile) -> np.ndarray:
            results = self._pool.run(
                Stage.VAE_ENCODER, {"image": _cut(images, _times(window, self._scale))}, size=self._pixels(window)
            )
            return np.concatenate([_float(results["mean"]), _float(results["std"])], axis=1)

        mean, std = np.split(self._joined(encoded, 1), 2, axis=1)
        return mean, std

    def decode(self, latent: np.ndarray) -> np.ndarray:
        """Latents (B,C,h,w), unscaled -> images (B,3,H,W) float32, nominally in [-1, 1]."""

        def decoded(window: Tile) -> np.ndarray:
            results = self._pool.run(Stage.VAE_DECODER, {"latent": _cut(latent, window)}, size=self._pixels(window))
            return _float(results["image"])

        return self._joined(decoded, self._scale)

    def _pixels(self, window: Tile) -> Size:
        return Size(window.height * self._scale, window.width * self._scale)

    def _joined(self, of_window: Callable[[Tile], np.ndarray], scale: int) -> np.ndarray:
        """The windows' results (B,C,h,w), at ``scale`` pixels to one of the latent, as one array of the whole tile."""
        if len(self._windows) == 1:
            return of_window(self._windows[0])
        whole = Size(self._pool.size.height // self._scale * scale, self._pool.size.width // self._scale * scale)
        blenders: list[Blender] = []
        for window in self._windows:
            values = of_window(window)
            blenders = blenders or [Blender(whole, values.shape[1]) for _ in values]
            for blender, of_tile in zip(blenders, values, strict=True):
                blender.add(_times(window, scale), of_tile.transpose(1, 2, 0))
        return np.stack([blender.finish().transpose(2, 0, 1) for blender in blenders])


def _times(window: Tile, scale: int) -> Tile:
    """A window of the latent in pixels of an image."""
    return Tile(window.index, *(scale * side for side in (window.y, window.x, window.height, window.width)))


def _cut(array: np.ndarray, window: Tile) -> np.ndarray:
    return array[:, :, window.y : window.y + window.height, window.x : window.x + window.width]


def _float(array: Array) -> np.ndarray:
    return to_host(array).astype(np.float32, copy=False)
