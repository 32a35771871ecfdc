"""The sampler: Euler steps over batches of tiles, under a policy that says when ReferenceNet runs.

``z`` lies on the host in float32; each step adds ``(sigma_next - sigma) * velocity`` (UPSTREAM.md, "One tile", 5-6).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from livemoments.errors import EngineError
from livemoments.manifest import Schedule
from livemoments.progress import Task
from livemoments.runtime.backends.base import Array, batch_axis, to_host
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.keys_values.content_cache import KvCache
from livemoments.runtime.keys_values.provider import ReferenceKv, motion_specs, reference_inputs
from livemoments.runtime.keys_values.step_store import HostStore, KvStore, budget_error
from livemoments.runtime.schedule import sigmas
from livemoments.types import ReferencePolicy, Stage, Tile

Observer = Callable[[str, np.ndarray], None]
"""Called with the name and the value of an intermediate tensor, one tile at a time."""


@dataclass(frozen=True)
class LatentBatch:
    """What the sampler needs of a batch of B tiles.

    Attributes:
        tiles: the tiles.
        latent: where sampling starts, (B,C,h,w) float32.
        reference: the clean latents of the reference tiles, (B,C,h,w) float32.
        flow: reference frame's tile -> tile, in pixels, (B,2,H,W) float32.
        content: a key per tile of what the reference latents were made from; empty where no cache is used.
    """

    tiles: tuple[Tile, ...]
    latent: np.ndarray
    reference: np.ndarray
    flow: np.ndarray
    content: tuple[str, ...] = ()


class Sampler(abc.ABC):
    """Turns initial latents into restored ones.

    Args:
        pool: the engines.
        schedule: the manifest's.
        plan: the points to sample at (``schedule.plan_steps``).
        policy: when ReferenceNet runs.
        cache: keys and values of earlier runs.
        observer: gets ``tile{i}.step{s}.NAME`` for the velocity and for every key and value tensor by the name it has
            between the graphs, and ``tile{i}.z_out``.

    Raises:
        EngineError: the graphs do not fit together.
        UsageError: the policy names a step that is not sampled.
    """

    def __init__(
        self,
        pool: EnginePool,
        schedule: Schedule,
        plan: Sequence[int],
        policy: ReferencePolicy,
        *,
        cache: KvCache | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._pool = pool
        self._plan = tuple(plan)
        self._sigmas = sigmas(schedule, plan)
        self._sources = policy.source_steps(len(plan))
        self._observer = observer
        self._reference = ReferenceKv(pool, cache)
        restoration = pool.graph(Stage.RESTORATION)
        self._motion_names = [spec.name for spec in motion_specs(pool.graph(Stage.MOTION), restoration)]
        given = {"latent", "step", *(spec.name for spec in self._reference.specs), *self._motion_names}
        if unfed := sorted({spec.name for spec in restoration.inputs} - given):
            raise EngineError(
                f"nothing produces the input {', '.join(unfed)} of the stage 'restoration'", fix="export again"
            )

    @property
    def steps(self) -> int:
        """How many Euler steps are made."""
        return len(self._plan)

    @abc.abstractmethod
    def batches_per_group(self, batch: int) -> int:
        """How many batches of ``batch`` tiles :meth:`sample` should be given at once."""

    @abc.abstractmethod
    def sample(self, batches: Sequence[LatentBatch], task: Task) -> list[np.ndarray]:
        """Sample a group of batches: the final latents, (B,C,h,w) float32 each, in their order.

        ``task`` advances by one per tile and step.
        """

    def _motion(self, batch: LatentBatch) -> dict[str, Array]:
        results = self._pool.run(Stage.MOTION, {"flow": batch.flow}, keep=self._motion_names)
        return {name: results[name] for name in self._motion_names}

    def _step(
        self, batch: LatentBatch, z: np.ndarray, step: int, kv: dict[str, Array], motion: dict[str, Array]
    ) -> np.ndarray:
        self._observe_kv(batch, step, kv)
        inputs = {**reference_inputs(z, self._plan[step]), **kv, **motion}
        velocity = np.asarray(self._pool.run(Stage.RESTORATION, inputs)["velocity"], dtype=np.float32)
        self._observe(batch, f"step{step}.velocity", velocity)
        return z + np.float32(self._sigmas[step + 1] - self._sigmas[step]) * velocity

    def _observe_kv(self, batch: LatentBatch, step: int, kv: dict[str, Array]) -> None:
        if self._observer is not None:
            for spec in self._reference.specs:
                values = np.moveaxis(to_host(kv[spec.name]), batch_axis(spec), 0)
                self._observe(batch, f"step{step}.{spec.name}", values)

    def _observe(self, batch: LatentBatch, name: str, values: np.ndarray) -> None:
        if self._observer is not None:
            for number, tile in enumerate(batch.tiles):
                self._observer(f"tile{tile.index}.{name}", values[number : number + 1])


class ResidentSampler(Sampler):
    """Both networks stay loaded; keys and values stay on the device and are renewed when the policy says so.

    With a back-end that queues ahead, the next batch's motion and the next keys and values (the first ones of the next
    batch, too) are queued before the host waits for a step: they are copied and computed while that step runs, for the
    memory of a second set.
    """

    def batches_per_group(self, batch: int) -> int:
        """One, as nothing is kept from one batch to the next; two where the second is begun during the first."""
        return 2 if self._pool.backend.queues_ahead else 1

    def sample(self, batches: Sequence[LatentBatch], task: Task) -> list[np.ndarray]:
        """See :meth:`Sampler.sample`."""
        if self._pool.backend.queues_ahead:
            return self._sample_ahead(batches, task)
        return [self._sample(batch, task) for batch in batches]

    def _sample_ahead(self, batches: Sequence[LatentBatch], task: Task) -> list[np.ndarray]:
        renewals = [
            (number, step)
            for number in range(len(batches))
            for step in range(self.steps)
            if step == 0 or self._sources[step] != self._sources[step - 1]
        ]
        motions: dict[int, dict[str, Array]] = {}
        ready: dict[tuple[int, int], dict[str, Array]] = {}

        def begin(place: int) -> None:
            if place < len(renewals):
                number, step = renewals[place]
                batch, point = batches[number], self._plan[self._sources[step]]
                if step == 0:
                    motions[number] = self._motion(batch)
                ready[number, step] = self._reference.compute(batch.reference, point, content=batch.content, keep=True)

        results, begun = [], 0
        begin(0)
        for number, batch in enumerate(batches):
            z = batch.latent
            kv: dict[str, Array] = {}
            for step in range(self.steps):
                if (number, step) in ready:
                    kv = {}  # the old ones go before others come
                    kv = ready.pop((number, step))
                    begun += 1
                    begin(begun)
                z = self._step(batch, z, step, kv, motions[number])
                task.advance(len(batch.tiles))
            del motions[number]
            self._observe(batch, "z_out", z)
            results.append(z)
        return results

    def _sample(self, batch: LatentBatch, task: Task) -> np.ndarray:
        motion = self._motion(batch)
        z = batch.latent
        kv: dict[str, Array] = {}
        for step in range(self.steps):
            if step == 0 or self._sources[step] != self._sources[step - 1]:
                kv = {}  # the old ones go before the new ones come
                point = self._plan[self._sources[step]]
                kv = self._reference.compute(batch.reference, point, content=batch.content, keep=True)
            z = self._step(batch, z, step, kv, motion)
            task.advance(len(batch.tiles))
        self._observe(batch, "z_out", z)
        return z


class PhaseSplitSampler(Sampler):
    """ReferenceNet at all of the timesteps that are wanted first, then it is closed and RestorationNet runs.

    Args:
        store: where the keys and values lie in between.
        budget_bytes: groups are made as large as their keys and values allow; at least one batch.
    """

    def __init__(
        self,
        pool: EnginePool,
        schedule: Schedule,
        plan: Sequence[int],
        policy: ReferencePolicy,
        *,
        store: KvStore,
        budget_bytes: int,
        cache: KvCache | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(pool, schedule, plan, policy, cache=cache, observer=observer)
        self._store = store
        self._budget_bytes = budget_bytes

    def batches_per_group(self, batch: int) -> int:
        """See :meth:`Sampler.batches_per_group`.

        Raises:
            ResourceError: a single batch does not fit into a host store's budget.
        """
        per_tile = self._reference.bytes_per_tile(self._store.codec)
        if per_tile is None:
            return 1
        per_batch = per_tile * batch * len(set(self._sources))
        if per_batch > self._budget_bytes and isinstance(self._store, HostStore):
            raise budget_error(per_batch, self._budget_bytes)
        return max(1, self._budget_bytes // per_batch)

    def sample(self, batches: Sequence[LatentBatch], task: Task) -> list[np.ndarray]:
        """See :meth:`Sampler.sample`: ReferenceNet over the whole group first, then RestorationNet."""
        try:
            self._fill(batches, task)
            return [self._drain(number, batch, task) for number, batch in enumerate(batches)]
        finally:
            self._pool.close(Stage.REFERENCE, Stage.RESTORATION)
            self._store.clear()

    def _fill(self, batches: Sequence[LatentBatch], task: Task) -> None:
        self._pool.close(Stage.RESTORATION)
        points = sorted({self._plan[source] for source in self._sources})
        for number, batch in enumerate(batches):
            for point in points:
                kv = self._reference.compute(batch.reference, point, content=batch.content, keep=False)
                self._store.put((number, point), kv)
                task.advance(len(batch.tiles) * self.steps / len(points) / 2)
        self._pool.close(Stage.REFERENCE)

    def _drain(self, number: int, batch: LatentBatch, task: Task) -> np.ndarray:
        motion = self._motion(batch)
        z = batch.latent
        for step in range(self.steps):
            kv: dict[str, Array] = dict(self._store.get((number, self._plan[self._sources[step]])))
            z = self._step(batch, z, step, kv, motion)
            task.advance(len(batch.tiles) / 2)
        for point in {self._plan[source] for source in self._sources}:
            self._store.discard((number, point))
        self._observe(batch, "z_out", z)
        return z
