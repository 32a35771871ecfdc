"""ReferenceNet's keys and values for a batch of tiles: from the engine, or from the cache where one is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livemoments.errors import EngineError
from livemoments.manifest import Graph
from livemoments.runtime.backends.base import Array, batch_axis, to_host
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.keys_values.codecs import Codec, codec_for
from livemoments.runtime.keys_values.content_cache import KvCache
from livemoments.types import Stage, TensorSpec


class ReferenceKv:
    """Computes the tensors that RestorationNet reads from ReferenceNet; what they mean is the graphs' affair.

    Args:
        pool: where the engines are; the reference engine is opened only if something must be computed.
        cache: keys and values of earlier runs.

    Raises:
        EngineError: no output of the one graph is an input of the other.
    """

    def __init__(self, pool: EnginePool, cache: KvCache | None = None) -> None:
        self._pool = pool
        self._cache = cache
        reads = {spec.name for spec in pool.graph(Stage.RESTORATION).inputs}
        self.specs: tuple[TensorSpec, ...] = tuple(
            spec for spec in pool.graph(Stage.REFERENCE).outputs if spec.name in reads
        )
        if not self.specs:
            raise EngineError("no output of the stage 'reference' is an input of 'restoration'", fix="export again")

    def compute(self, latent: np.ndarray, point: int, *, content: Sequence[str] = (), keep: bool) -> dict[str, Array]:
        """Keys and values of a batch of tiles at one schedule point.

        Args:
            latent: the clean reference latents, (B,C,h,w) float32.
            point: index into the manifest's schedule.
            content: one content key per tile, for the cache; without them it is not asked.
            keep: leave the tensors on the device (what went through the cache is in host memory).
        """
        if self._cache is None or not content:
            return self._run(latent, point, keep=keep)
        tiles = [self._cache.get(key, point) for key in content]
        missing = [place for place, found in enumerate(tiles) if found is None]
        if missing:
            computed = self._run(np.ascontiguousarray(latent[missing]), point, keep=False)
            for number, place in enumerate(missing):
                tiles[place] = self._cache.put(content[place], point, self._take(computed, number))
        found_tiles = [tile for tile in tiles if tile is not None]
        return {s.name: np.concatenate([tile[s.name] for tile in found_tiles], axis=batch_axis(s)) for s in self.specs}

    def bytes_per_tile(self, codec: Codec) -> int | None:
        """Stored bytes of one tile's tensors at one point; ``None`` if the manifest leaves another axis free."""
        return tensor_bytes_per_tile(self.specs, codec)

    def _run(self, latent: np.ndarray, point: int, *, keep: bool) -> dict[str, Array]:
        names = [spec.name for spec in self.specs]
        results = self._pool.run(Stage.REFERENCE, reference_inputs(latent, point), keep=names if keep else ())
        return {name: results[name] for name in names}

    def _take(self, arrays: dict[str, Array], number: int) -> dict[str, np.ndarray]:
        return {s.name: np.take(to_host(arrays[s.name]), [number], axis=batch_axis(s)) for s in self.specs}


def reference_inputs(latent: np.ndarray, point: int) -> dict[str, Array]:
    """The inputs ``latent`` (B,C,h,w) and ``step`` (scalar) that both transformers take."""
    return {"latent": latent, "step": np.array(point, dtype=np.int64)}


def tensor_bytes_per_tile(specs: Sequence[TensorSpec], codec: Codec) -> int | None:
    """Stored bytes of these tensors for one tile; ``None`` where an axis besides the batch is free."""
    total = 0
    for spec in specs:
        axis = batch_axis(spec)
        shape = tuple(1 if place == axis else length for place, length in enumerate(spec.shape))
        if any(isinstance(length, str) for length in shape):
            return None
        dtype = np.dtype(spec.dtype)
        total += codec_for(codec, dtype).stored_bytes(tuple(map(int, shape)), dtype)
    return total


def motion_specs(motion: Graph, restoration: Graph) -> tuple[TensorSpec, ...]:
    """The outputs of the motion encoder that RestorationNet reads."""
    reads = {spec.name for spec in restoration.inputs}
    return tuple(spec for spec in motion.outputs if spec.name in reads)
