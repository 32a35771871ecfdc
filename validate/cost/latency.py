"""How long stages and tiles take: single runs after a warm-up, as percentiles.

Percentiles interpolate linearly between the sorted runs (numpy's default): of 20 runs p99 lies four fifths of the way
from the second slowest to the slowest. Loading is timed with the files in the page cache, where hashing has put them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Array, Backend
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import restore
from livemoments.runtime.schedule import plan_steps
from livemoments.simulated_clip import synthetic_photograph
from livemoments.stage_inputs import draw_input
from livemoments.types import ReferencePolicy, Size, Stage
from livemoments.validate.cost.nvml import Gpu, count_energy
from livemoments.validate.harness.kept_engines import KeptEngines
from livemoments.validate.report_data import StageCost

PERCENTILES = (50, 90, 99)
_PASSED_ON = (Stage.MOTION, Stage.REFERENCE)


@dataclass(frozen=True, slots=True)
class TileCost:
    """Whole tiles: flow, encoding, motion, all steps, decoding.

    Attributes:
        seconds: of each tile, a tile's share of its batch, without loading.
        energy_j: of the GPU, per tile; ``None`` where it was not counted.
    """

    seconds: tuple[float, ...]
    energy_j: float | None


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """``p50``, ``p90`` and ``p99``, interpolated linearly."""
    return {f"p{q}": float(np.percentile(seconds, q)) for q in PERCENTILES}


def measure_stages(
    bundle: Bundle,
    backend: Backend,
    *,
    sizes: Sequence[Size] | None = None,
    batch: int = 1,
    runs: int = 20,
    warmup: int = 3,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[StageCost, ...]:
    """Time every stage by itself on seeded inputs of realistic magnitude.

    A stage is timed as the runtime runs it: inputs cast to the graph's types, keys, values and motion left on the
    device. Keys and values come from the bundle's own earlier stages. Under ``phase-split`` they pass through host
    memory instead, and the two large networks are never loaded together.

    Args:
        bundle: opened.
        backend: what runs the graphs.
        sizes: of the tiles; every size of the bundle by default.
        batch: tiles computed at once.
        runs: timed runs of each stage.
        warmup: runs before, which are not timed.
        seed: of the inputs.
        progress: where to report.

    Raises:
        UsageError: there is no timed run, or the batch is empty.
        BundleError: the bundle has no graphs of this size.
        EngineError: an engine does not load or run.
        ResourceError: memory ran out.
    """
    _check_counts(runs, warmup, batch)
    sizes = sizes or bundle.tile_sizes
    stages = [stage for stage in Stage if str(stage) in bundle.manifest.stages]
    resident = ReferencePolicy.parse(bundle.manifest.reference_policy).name != "phase-split"
    point = plan_steps(bundle.manifest.schedule)[0]
    costs = []
    with progress.task("Timing the stages", len(sizes) * len(stages) * (warmup + runs)) as task:
        for tile in sizes:
            passed_on: dict[str, Array] = {}
            with contextlib.ExitStack() as open_until_the_end:
                for stage in stages:
                    started_s = time.perf_counter()
                    engine = backend.open(bundle, stage, tile)
                    load_s = time.perf_counter() - started_s
                    stays = stage is Stage.MOTION or (stage is Stage.REFERENCE and resident)
                    keep = [spec.name for spec in engine.outputs] if stays else []
                    with contextlib.ExitStack() as open_for_now:
                        # what a stage left on the device is still needed by others
                        (open_until_the_end if keep else open_for_now).callback(engine.close)
                        inputs = {}
                        for spec in engine.inputs:
                            if stage is Stage.RESTORATION and spec.name in passed_on:
                                inputs[spec.name] = passed_on[spec.name]
                            else:
                                rng = np.random.default_rng([seed, *f"{stage} {spec.name}".encode()])
                                inputs[spec.name] = draw_input(spec, rng, batch=batch, size=tile, point=point)
                        seconds = []
                        for _ in range(warmup + runs):
                            started_s = time.perf_counter()
                            outputs = engine.run(engine.cast(inputs), keep=keep)
                            seconds.append(time.perf_counter() - started_s)
                            task.advance(1, note=f"{stage} {tile}")
                        if stage in _PASSED_ON:
                            passed_on |= outputs
                    costs.append(_stage_cost(bundle, stage, tile, seconds[warmup:], load_s))
    return tuple(costs)


def measure_tiles(
    bundle: Bundle,
    settings: RestoreOptions,
    backend: Backend,
    *,
    size: Size | None = None,
    runs: int = 10,
    warmup: int = 2,
    gpu: Gpu | None = None,
    progress: Progress = SILENT,
) -> TileCost:
    """Time whole tiles, with the engines loaded: synthetic photos of one batch each, restored again and again.

    Args:
        bundle: opened.
        settings: how tiles are restored.
        backend: what runs the graphs.
        size: of the tiles; the bundle's first by default.
        runs: timed photos.
        warmup: photos before, which are not timed.
        gpu: whose energy is counted.
        progress: where to report.

    Raises:
        UsageError: there is no timed run.
        EngineError: an engine failed.
        ResourceError: memory ran out.
    """
    _check_counts(runs, warmup, settings.batch)
    tile = size or bundle.tile_sizes[0]
    settings = replace(settings, tile=tile, compat=None, tile_plan=None)
    frame, photo = batch_photo(bundle, tile, settings.batch, seed=settings.seed)
    seconds: list[float] = []
    with (
        contextlib.closing(KeptEngines(backend, settings.policy(bundle))) as engines,
        progress.task("Timing whole tiles", warmup + runs) as task,
    ):

        def once() -> tuple[float, ...]:
            result = restore(bundle, LivePhoto(frame, photo, frame), settings, backend=engines)
            task.advance()
            return result.timings.tile_run_seconds

        for _ in range(warmup):
            once()
        with count_energy(gpu) as joules:
            for _ in range(runs):
                seconds.extend(once())
    return TileCost(tuple(seconds), joules[0] / len(seconds) if joules else None)


def batch_photo(bundle: Bundle, tile: Size, batch: int, *, seed: int = 0) -> tuple[Photo, Photo]:
    """A frame and a photo of one size that hold exactly one batch of tiles side by side."""
    width = tile.width * batch - bundle.manifest.overlap * (batch - 1)
    photo = synthetic_photograph(Size(tile.height, width), seed=seed)
    return Photo(np.ascontiguousarray(np.roll(photo, 2, axis=1))), Photo(photo)


def _stage_cost(bundle: Bundle, stage: Stage, size: Size, seconds: Sequence[float], load_s: float) -> StageCost:
    graph = bundle.graph(stage, size)
    return StageCost(
        stage=str(stage),
        size=str(size),
        runs=len(seconds),
        **{f"{name}_s": value for name, value in percentiles(seconds).items()},
        load_s=load_s,
        bytes=sum(bundle.manifest.files[name].bytes for name in {graph.path, *graph.weights}),
    )


def _check_counts(runs: int, warmup: int, batch: int) -> None:
    for count, least, problem in (
        (runs, 1, f"{runs} timed runs say nothing"),
        (warmup, 0, f"{warmup} runs cannot warm up"),
        (batch, 1, f"a batch of {batch} tiles cannot be computed"),
    ):
        if count < least:
            raise UsageError(problem, fix=f"use {least} or more")
