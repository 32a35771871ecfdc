"""Memory over the course of one restoration: what is resident while each stage runs, in the order of the runtime.

Follows ``runtime/restore.py``: which engines are open, what their arenas keep, what the keys and values, the images and
the blended picture take. Groups after the second are like the second, and are not gone through again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from livemoments.profiles.planner.cost import StageCost
from livemoments.profiles.planner.engines import ARENA_STAGES, EngineModel, Keeping, Rates
from livemoments.runtime.engine_pool import PHASES
from livemoments.runtime.options import Residency
from livemoments.types import TRANSFORMER_STAGES, VAE_STAGES, ReferencePolicy, Size, Stage

_PHOTO_BYTES_PX = 3 + 16 + 3  # the photo, the blended sums and weights, the result; per pixel of the photo
_FRAME_BYTES_PX = 3 * 2 + 8 + 24  # two frames, their flow, both as the flow network takes them; per pixel of the frame
_TILE_FLOATS_PX = 3 * 3 + 2 + 3  # three windows, the flow, the decoded tile
_CUTTING_BYTES = 16 << 20  # the package onnx, which cuts graphs into blocks; measured
_LOAD_BYTES_S = 1e9  # files in the system's cache to packed weights; assumed


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of a restoration.

    Attributes:
        label: what runs.
        group: number of the group of tiles; ``None`` before and after them.
        seconds: predicted; ``None`` where the profile has no rate.
        host: bytes in the process by what they are for.
        device: bytes on an accelerator with memory of its own; empty where engines share the process' memory.
    """

    label: str
    group: int | None
    seconds: float | None
    host: dict[str, int]
    device: dict[str, int]

    @property
    def host_bytes(self) -> int:
        """All of the process."""
        return sum(self.host.values())

    @property
    def device_bytes(self) -> int:
        """All on the accelerator."""
        return sum(self.device.values())


@dataclass(frozen=True, slots=True)
class Work:
    """What is restored, and how.

    Attributes:
        photo: the result's size.
        frame: the video frames' size.
        tile: the tiles' size.
        tiles: how many.
        batch: of them at once.
        policy: when ReferenceNet runs.
        steps: of sampling.
        residency: which engines are loaded at once, as the runtime calls it.
        kv_on_disk: stored keys and values lie in files.
        kv_budget_bytes: of stored keys and values.
        flow_on_engine: RAFT; else OpenCV's DIS.
        vae_tile: what the VAE sees at once; ``None``: a whole tile.
        vae_windows: how many of these cover a tile.
    """

    photo: Size
    frame: Size
    tile: Size
    tiles: int
    batch: int
    policy: ReferencePolicy
    steps: int
    residency: Residency
    kv_on_disk: bool
    kv_budget_bytes: int
    flow_on_engine: bool
    vae_tile: Size | None = None
    vae_windows: int = 1

    @property
    def by_phases(self) -> bool:
        """Whether one phase's engines are loaded at a time."""
        return self.residency != "all"

    def keeping(self, stage: Stage) -> Keeping:
        """What a stage's engine keeps between runs: ``OrtBackend`` and ``StreamedBackend`` have arenas for some."""
        if self.residency == "streamed" and stage in ARENA_STAGES:
            return "blocks" if stage in TRANSFORMER_STAGES else "lean"
        return "lean" if self.residency == "mapped" and stage in TRANSFORMER_STAGES else "usual"

    def size(self, stage: Stage) -> Size:
        """What a stage's graph is given of a tile."""
        return self.vae_tile if self.vae_tile is not None and stage in VAE_STAGES else self.tile

    @property
    def points(self) -> int:
        """How often ReferenceNet runs for a tile."""
        return len(set(self.policy.source_steps(self.steps)))

    @property
    def stores(self) -> bool:
        """Whether keys and values are stored between ReferenceNet and RestorationNet."""
        return self.by_phases or self.policy.name == "phase-split"


@dataclass(slots=True)
class _Run:
    """The state of the simulated process."""

    work: Work
    costs: Mapping[Stage, StageCost]
    photo_flow: StageCost | None
    model: EngineModel
    rates: Rates
    segments: list[Segment] = field(default_factory=list)
    opened: dict[Stage, int] = field(default_factory=dict)
    runs: dict[Stage, int] = field(default_factory=dict)
    share: float = 1.0  # of a batch that its tiles fill, on average over the group
    stored_bytes: int = 0
    waiting_bytes: int = 0

    def run(
        self, stage: Stage, group: int | None, times: int, *, cost: StageCost | None = None, copied_bytes: int = 0
    ) -> None:
        """Open a stage if it is not, and run it ``times`` times, with ``copied_bytes`` of its inputs copied."""
        cost = cost or self.costs[stage]
        load_bytes = 0
        if stage not in self.opened:
            if self.work.by_phases:
                (phase,) = (stages for stages in PHASES if stage in stages)
                self.close(*(other for other in Stage if other not in phase))
            load_bytes = cost.weight_bytes * (times if self.work.keeping(stage) == "blocks" else 1)
            self.opened[stage], self.runs[stage] = self.model.loaded_bytes(cost, self.work.keeping(stage)), 0
        self.runs[stage] += times
        engines: dict[str, int] = {}
        for other, loaded in self.opened.items():
            seen = self.costs.get(other, cost)
            kept = self.model.kept_bytes(seen, self.runs[other], self.work.keeping(other))
            engines[str(other)] = loaded + (0 if other is stage else kept)
        running = self.model.running_bytes(cost, self.runs[stage], self.work.keeping(stage))
        engines["activations"] = running + copied_bytes
        self.add(str(stage), group, self._seconds(cost, times, load_bytes), engines)

    def _seconds(self, cost: StageCost, times: int, load_bytes: int) -> float | None:
        once = self.rates.seconds(cost)
        if once is None:
            return None
        copied = 0.0 if self.rates.link_bytes_s is None else cost.input_bytes / self.rates.link_bytes_s
        return times * (once + copied) * self.share + load_bytes / _LOAD_BYTES_S

    def add(self, label: str, group: int | None, seconds: float | None, engines: dict[str, int]) -> None:
        """Write a segment down."""
        cutting = _CUTTING_BYTES if self.work.residency == "streamed" else 0
        host = {"process": self.model.process_bytes + cutting, "images": self._image_bytes()}
        if self.stored_bytes and not self.work.kv_on_disk:
            host["keys and values"] = self.stored_bytes
        if self.waiting_bytes:
            host["latents and flow"] = self.waiting_bytes
        device: dict[str, int] = {}
        if self.model.shares_host:
            host |= engines
        else:
            device = engines | {"driver": self.model.device_bytes}
        self.segments.append(Segment(label=label, group=group, seconds=seconds, host=host, device=device))

    def close(self, *stages: Stage) -> None:
        """Close what of these is open."""
        for stage in stages:
            self.opened.pop(stage, None)

    def _image_bytes(self) -> int:
        work = self.work
        tile_px = work.tile.height * work.tile.width * work.batch
        return (
            work.photo.height * work.photo.width * _PHOTO_BYTES_PX
            + work.frame.height * work.frame.width * _FRAME_BYTES_PX
            + tile_px * _TILE_FLOATS_PX * 4
        )


def batches_per_group(work: Work, costs: Mapping[Stage, StageCost]) -> int:
    """How many batches go through a phase together, as the sampler decides."""
    if not work.stores:
        return 1
    per_batch = costs[Stage.REFERENCE].output_bytes * work.points
    return max(1, work.kv_budget_bytes // per_batch)


def timeline(
    work: Work,
    costs: Mapping[Stage, StageCost],
    model: EngineModel,
    rates: Rates,
    photo_flow: StageCost | None = None,
) -> tuple[Segment, ...]:
    """Go through a restoration.

    Args:
        work: what is restored.
        costs: of every stage for one batch of tiles; flow's only where an engine does it.
        model: memory of the engines.
        rates: speed.
        photo_flow: flow at the video frames' size, where an engine does it.

    Returns:
        The segments in order. The groups between the second and the last are folded into the second, whose segments
        have their seconds.
    """
    run = _Run(work, costs, photo_flow, model, rates)
    run.add("read", None, 0.0 if rates.flops else None, {})
    if photo_flow is not None:
        run.run(Stage.FLOW, None, 1, cost=photo_flow)
    batches = math.ceil(work.tiles / work.batch)
    per_group = min(batches, batches_per_group(work, costs))
    groups = math.ceil(batches / per_group)
    for group in sorted({0, min(1, groups - 1), groups - 1}):
        is_last = group == groups - 1
        first = len(run.segments)
        count = batches - per_group * (groups - 1) if is_last else per_group
        tiles = min(work.tiles - group * per_group * work.batch, per_group * work.batch)
        run.share = tiles / (count * work.batch)
        _group(run, group, count, is_last=is_last)
        if group == 1 and groups > 3:
            for place in range(first, len(run.segments)):
                segment = run.segments[place]
                total = None if segment.seconds is None else segment.seconds * (groups - 2)
                run.segments[place] = msgspec.structs.replace(segment, seconds=total)
    run.close(*Stage)
    run.add("colours, writing", None, 0.0 if rates.flops else None, {})
    return tuple(run.segments)


def _group(run: _Run, group: int, count: int, *, is_last: bool) -> None:
    """One group of batches, as ``_restore_group`` does it."""
    work, costs = run.work, run.costs
    encoder = work.size(Stage.VAE_ENCODER)
    windows = work.tile.height * work.tile.width / (encoder.height * encoder.width)
    latent = int(2 * costs[Stage.VAE_ENCODER].output_bytes * windows)
    flow = work.tile.height * work.tile.width * work.batch * 8
    run.waiting_bytes = count * (latent + flow)
    if work.flow_on_engine:
        run.run(Stage.FLOW, group, count)
    run.run(Stage.VAE_ENCODER, group, 2 * count * work.vae_windows)
    if is_last:
        run.close(Stage.FLOW, Stage.VAE_ENCODER)
    if work.stores:
        run.close(Stage.RESTORATION)
        run.stored_bytes = costs[Stage.REFERENCE].output_bytes * work.points * count
        run.run(Stage.REFERENCE, group, work.points * count)
        run.close(Stage.REFERENCE)
        run.run(Stage.MOTION, group, count)
        kv = costs[Stage.REFERENCE].output_bytes
        if work.residency == "streamed":  # a block is given its own
            kv //= max(1, len(costs[Stage.RESTORATION].blocks))
        run.run(Stage.RESTORATION, group, work.steps * count, copied_bytes=kv)
        run.close(Stage.REFERENCE, Stage.RESTORATION)
        run.stored_bytes = 0
    else:
        run.run(Stage.MOTION, group, count)
        run.run(Stage.REFERENCE, group, work.points * count)
        run.run(Stage.RESTORATION, group, work.steps * count)
    if is_last:
        run.close(Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION)
    run.run(Stage.VAE_DECODER, group, count * work.vae_windows)
    run.waiting_bytes = 0
