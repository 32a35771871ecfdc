"""Everything that a restoration costs on this machine, in one call."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from livemoments.bundle import Bundle
from livemoments.errors import ResourceError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size
from livemoments.validate.cost.latency import batch_photo, measure_stages, measure_tiles, percentiles
from livemoments.validate.cost.machine import State, watch_state
from livemoments.validate.cost.memory import FreshRun, restore_afresh, runtime_memory
from livemoments.validate.cost.nvml import GPU_PROVIDERS, Gpu, open_gpu
from livemoments.validate.made_up_photo import write_live_photo
from livemoments.validate.report_data import Check, Cost, Memory


def measure_cost(
    bundle: Bundle,
    settings: RestoreOptions | None = None,
    *,
    photo: LivePhoto[Path] | None = None,
    sizes: Sequence[Size] | None = None,
    backend: Backend | None = None,
    runs: int = 20,
    tile_runs: int = 5,
    warmup: int = 2,
    progress: Progress = SILENT,
) -> Cost:
    """Measure stages, whole tiles, a whole photo in a fresh process, memory and energy.

    Run it alone: whatever else the machine does is in the numbers, and only the load average tells.

    Args:
        bundle: opened.
        settings: how it restores.
        photo: for the fresh process; by default a synthetic photo of one batch of tiles.
        sizes: tile sizes whose stages are timed; by default all of the bundle's, or the one in the settings. Whole
            tiles are timed at the first.
        backend: replaces the settings' back-end, except in the fresh process.
        runs: timed runs of each stage.
        tile_runs: timed batches of whole tiles.
        warmup: runs and batches before, which are not timed.
        progress: where to report.

    Raises:
        UsageError: a setting cannot be used.
        BundleError: the bundle has no graphs of a size.
        EngineError: an engine failed.
        ResourceError: memory ran out.
    """
    settings = (settings or RestoreOptions()).for_bundle(bundle)
    backend = backend or settings.open_backend(bundle)
    sizes = sizes or ([settings.tile] if settings.tile else bundle.tile_sizes)
    with _watched_machine(settings) as (gpu, no_gpu, state):
        counts = {"runs": runs, "warmup": warmup, "batch": settings.batch, "seed": settings.seed}
        stages = measure_stages(bundle, backend, sizes=sizes, progress=progress, **counts)
        tiles = measure_tiles(
            bundle, settings, backend, size=sizes[0], runs=tile_runs, warmup=warmup, gpu=gpu, progress=progress
        )
        memory = runtime_memory(backend)
        with progress.task("Restoring in a fresh process"), tempfile.TemporaryDirectory() as folder:
            frame, picture = batch_photo(bundle, sizes[0], settings.batch, seed=settings.seed)
            files = photo or write_live_photo(LivePhoto(frame, picture, frame), Path(folder))
            fresh = restore_afresh(bundle, files, settings, gpu=gpu, no_gpu=no_gpu)
    return _cost(
        state,
        tiles.seconds,
        fresh,
        memory,
        stages=stages,
        load_s=sum(stage.load_s for stage in stages if stage.size == str(sizes[0])),
        energy_j=tiles.energy_j,
        energy_method=_energy_method(tiles.energy_j, settings.provider, no_gpu),
    )


def cost_of_run(
    bundle: Bundle,
    settings: RestoreOptions,
    photo: LivePhoto[Path],
    output: Path,
    *,
    as_asked: bool = False,
    show_progress: bool = False,
) -> Cost:
    """What one restoration in a process of its own cost, for a photo that is wanted anyway: nothing is run twice, so
    there are no single stages and no warm-up.

    Args:
        bundle: opened.
        settings: how it restores.
        photo: the images.
        output: where the restored photo stays.
        as_asked: a process that went on in another way because memory ran out is an error, too.
        show_progress: let the process draw its bars on stderr.

    Raises:
        EngineError: the command failed.
        ResourceError: memory ran out.
    """
    with _watched_machine(settings) as (gpu, no_gpu, state):
        fresh = restore_afresh(
            bundle, photo, settings, output=output, gpu=gpu, no_gpu=no_gpu, show_progress=show_progress
        )
    if as_asked and fresh.fallbacks:
        raise ResourceError(f"memory ran out on the way, and it went on otherwise: {'; '.join(fresh.fallbacks)}")
    unmeasured = "not counted in a single run"
    return _cost(state, fresh.tile_s, fresh, stages=(), load_s=fresh.load_s, energy_method=unmeasured)


@contextlib.contextmanager
def _watched_machine(settings: RestoreOptions) -> Iterator[tuple[Gpu | None, str, State]]:
    """The GPU that the settings use, or why there is none, and the machine's state before and after the block."""
    gpu, no_gpu = open_gpu() if settings.provider.lower() in GPU_PROVIDERS else (None, "")
    try:
        with watch_state(gpu) as state:
            yield gpu, no_gpu, state
    finally:
        if gpu is not None:
            gpu.close()


def _cost(state: State, seconds: Sequence[float], fresh: FreshRun, *memory: Memory, **others: Any) -> Cost:
    tile_s = percentiles(seconds) if seconds else {}
    return Cost(
        tile_s=tile_s,
        tiles_per_s=1 / tile_s["p50"] if tile_s.get("p50") else None,
        photo_s=fresh.seconds,
        photo=None if fresh.seconds is None else f"{fresh.width}x{fresh.height}",
        memory=(*fresh.memory, *memory),
        clocks=state.clocks,
        load_average=state.load,
        **others,
    )


def cost_checks(cost: Cost) -> tuple[Check, ...]:
    """The numbers by name, informative: what a later run's ``--baseline`` compares.

    ``cost.STAGE.SIZE.p50_s``, ``cost.tile.p50_s``, ``cost.load_s``, ``cost.photo_s``, ``cost.KIND.bytes``,
    ``cost.energy_j``; what was not measured is missing.
    """
    rows: list[tuple[str, float | None, str, str]] = [
        (f"cost.{stage.stage}.{stage.size}.p50_s", stage.p50_s, "s", f"p90 {stage.p90_s:.4g} s, {stage.runs} runs")
        for stage in cost.stages
    ]
    rows += [
        ("cost.tile.p50_s", cost.tile_s.get("p50"), "s", "a whole tile"),
        ("cost.load_s", cost.load_s, "s", "all engines"),
        ("cost.photo_s", cost.photo_s, "s", f"{cost.photo}, in a fresh process"),
        ("cost.energy_j", cost.energy_j, "J", cost.energy_method),
    ]
    rows += [(f"cost.{memory.kind}.bytes", memory.bytes, "bytes", memory.method) for memory in cost.memory]
    return tuple(
        Check(name=name, value=value, limit=None, unit=unit, better="lower", status="info", detail=detail)
        for name, value, unit, detail in rows
        if value is not None
    )


def _energy_method(energy_j: float | None, provider: str, no_gpu: str) -> str:
    if provider.lower() not in GPU_PROVIDERS:
        return f"the provider '{provider}' uses no NVIDIA GPU"
    if energy_j is None:
        return no_gpu or "NVML: this GPU or driver does not count energy"
    return "NVML's total energy counter: the whole GPU, idle power included"
