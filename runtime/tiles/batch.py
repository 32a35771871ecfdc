"""A batch of tiles on its way in (cut, flow, VAE encoder, noise) and out (VAE decoder, blending)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.flow import FlowEstimator, FlowOfTile
from livemoments.runtime.inputs import RestoreInputs, cut_tile, network_image
from livemoments.runtime.keys_values.content_cache import content_key
from livemoments.runtime.noise import NoiseSource, TileNoise
from livemoments.runtime.sampler import LatentBatch, Observer
from livemoments.runtime.tiles.blend import Blender
from livemoments.runtime.tiles.correspondence import FlowField, MeanFlow, ReferenceCorner, reference_corner
from livemoments.runtime.tiles.plan import TilePlan
from livemoments.runtime.tiles.vae import TileVae
from livemoments.types import Size, Stage, Tile


def photo_flow(estimate: FlowEstimator, inputs: RestoreInputs) -> np.ndarray:
    """Flow frame -> key frame at video size: (1,2,h,w) float32, pixels of the video."""
    frame, photo_frame = inputs.frame.unit(), inputs.photo_frame.unit()
    return estimate(network_image(frame)[None], network_image(photo_frame)[None])


def reference_corners(
    flow: np.ndarray, inputs: RestoreInputs, plan: TilePlan, *, follow: bool = True, grid_px: int = 1
) -> dict[int, tuple[MeanFlow, ReferenceCorner]]:
    """PCR for every tile: its mean flow, and where its reference tile lies; by tile index.

    Args:
        flow: :func:`photo_flow`'s result.
        inputs: the images.
        plan: the tiles.
        follow: the flow; otherwise every reference tile lies where its tile does, as if there were no PCR.
        grid_px: the corners that the flow says go to multiples of it.
    """
    field = FlowField(np.ascontiguousarray(flow[0].transpose(1, 2, 0)), inputs.size)
    means = {tile.index: (tile, field.mean(tile)) for tile in plan.tiles}
    if not follow:
        still = MeanFlow(0.0, 0.0)
        return {index: (mean, reference_corner(tile, still, plan.padded)) for index, (tile, mean) in means.items()}
    return {index: (mean, reference_corner(tile, mean, plan.padded, grid_px)) for index, (tile, mean) in means.items()}


class TileCodec:
    """Takes batches of tiles to latents and back. Tile images exist only while a batch is encoded or decoded.

    Args:
        pool: the engines.
        inputs: the images.
        corners: where each tile's reference lies, by tile index.
        noise: every tile's random numbers.
        flow: estimator for the tiles' flow.
        vae_window: pixels that the VAE sees at once; ``None``: a whole tile.
        tile_flow: the flow that the networks get in place of the estimated one, by tile: see :data:`FlowOfTile`.
        use_cache: give latent batches the content keys that the K/V cache asks for.
        observer: gets the tiles' flow, posteriors, latents and decoded images.
    """

    def __init__(
        self,
        pool: EnginePool,
        inputs: RestoreInputs,
        corners: dict[int, ReferenceCorner],
        noise: NoiseSource,
        flow: FlowEstimator,
        *,
        vae_window: Size | None = None,
        tile_flow: FlowOfTile | None = None,
        use_cache: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self._pool = pool
        self._inputs = inputs
        self._corners = corners
        self._noise = noise
        self._flow = flow
        self._vae = TileVae(pool, vae_window)
        self._vae_window = vae_window
        self._tile_flow = tile_flow
        self._observer = observer
        self._model = pool.bundle.manifest.model
        self._noise_level = np.float32(pool.bundle.manifest.schedule.noise_level)
        stages = (Stage.VAE_ENCODER, Stage.REFERENCE)
        self._context = {str(stage): pool.bundle.digest(stage) for stage in stages} if use_cache else None

    def encode(self, tiles: Sequence[Tile]) -> LatentBatch:
        """Cut the tiles, estimate their flow, encode them and add noise (UPSTREAM.md, "One tile", 1, 3 and 4)."""
        images = [cut_tile(self._inputs, tile, self._corners[tile.index]) for tile in tiles]
        size = tiles[0].size
        scale = self._model.vae_scale
        shape = (self._model.latent_channels, size.height // scale, size.width // scale)
        noise = [self._noise.draw(tile, shape) for tile in tiles]
        photo_frame, frame = np.stack([i.photo_frame for i in images]), np.stack([i.frame for i in images])
        flow = self._measured_flow(photo_frame, frame)
        self._observe(tiles, "flow", flow)
        if self._tile_flow is not None:
            given = [self._tile_flow(tile) for tile in tiles]
            flow = np.stack([own if other is None else other for own, other in zip(flow, given, strict=True)])
        z_lq = self._encode(tiles, "lq", frame, np.stack([n.posterior_lr for n in noise]))
        photo = np.stack([i.photo for i in images])
        z_ref = self._encode(tiles, "ref", photo, np.stack([n.posterior_ref for n in noise]))
        initial = np.stack([n.initial for n in noise])
        z = (np.float32(1) - self._noise_level) * z_lq + self._noise_level * initial
        self._observe(tiles, "z_init", z)
        return LatentBatch(tuple(tiles), z, z_ref, flow, self._content(photo, noise))

    def decode(self, batch: LatentBatch, z: np.ndarray) -> Iterator[tuple[Tile, np.ndarray]]:
        """Decode final latents (B,C,h,w): each tile and its image, (h, w, 3) float32, nominally in [-1, 1]."""
        unscaled = z / np.float32(self._model.latent_scaling) + np.float32(self._model.latent_shift)
        image = self._vae.decode(unscaled)
        self._observe(batch.tiles, "decoded", image)
        for number, tile in enumerate(batch.tiles):
            yield tile, image[number].transpose(1, 2, 0)

    def _measured_flow(self, photo_frame: np.ndarray, frame: np.ndarray) -> np.ndarray:
        if self._flow.kind == "engine":  # the pool measures it
            return self._flow(photo_frame, frame)
        with self._pool.timings.measure(str(Stage.FLOW)):
            return self._flow(photo_frame, frame)

    def _encode(self, tiles: Sequence[Tile], name: str, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
        mean, std = self._vae.encode(images)
        z = (mean + std * noise - np.float32(self._model.latent_shift)) * np.float32(self._model.latent_scaling)
        self._observe(tiles, f"{name}.posterior_mean", mean)
        self._observe(tiles, f"{name}.posterior_std", std)
        self._observe(tiles, f"z_{name}", z)
        return z

    def _content(self, photo: np.ndarray, noise: Sequence[TileNoise]) -> tuple[str, ...]:
        if self._context is None:
            return ()
        context = {**self._context, "backend": self._pool.backend.name, "provider": self._pool.backend.provider}
        if self._vae_window is not None:
            context["vae_window"] = str(self._vae_window)
        return tuple(
            content_key(context, image, drawn.posterior_ref) for image, drawn in zip(photo, noise, strict=True)
        )

    def _observe(self, tiles: Sequence[Tile], name: str, values: np.ndarray) -> None:
        if self._observer is not None:
            for number, tile in enumerate(tiles):
                self._observer(f"tile{tile.index}.{name}", values[number : number + 1])


class OrderedBlender:
    """Adds tiles to a :class:`Blender` by ascending index, in whatever order they come.

    Float sums of three or more tiles depend on their order; this makes the result independent of it. Tiles that
    come in order (which the planner's do) are added at once; others wait in memory.

    Args:
        blender: where tiles go.
    """

    def __init__(self, blender: Blender) -> None:
        self._blender = blender
        self._waiting: dict[int, tuple[Tile, np.ndarray]] = {}
        self._next = 0

    def add(self, tile: Tile, values: np.ndarray) -> None:
        """Take one tile's image, (h, w, 3) float32."""
        self._waiting[tile.index] = (tile, values)
        while self._next in self._waiting:
            self._blender.add(*self._waiting.pop(self._next))
            self._next += 1
