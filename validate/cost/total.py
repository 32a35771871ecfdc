"""Everything that a restoration costs on this machine, in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size
from livemoments.validate.cost.latency import batch_photo, measure_stages, measure_tiles, percentiles
from livemoments.validate.cost.machine import watch_state
from livemoments.validate.cost.memory import restore_afresh, runtime_memory
from livemoments.validate.cost.nvml import GPU_PROVIDERS, open_gpu
from livemoments.validate.report_data import Check, Cost


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
    fresh_process: bool = True,
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
        fresh_process: restore a photo in a process of its own; without, there is no peak memory and no ``photo_s``.
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
    gpu, no_gpu = open_gpu() if settings.provider.lower() in GPU_PROVIDERS else (None, "")
    try:
        with watch_state(gpu) as state:
            stages = [
                stage
                for size in sizes
                for stage in measure_stages(
                    bundle,
                    backend,
                    size=size,
                    batch=settings.batch,
                    runs=runs,
                    warmup=warmup,
                    seed=settings.seed,
                    progress=progress,
                )
            ]
            tiles = measure_tiles(
                bundle, settings, backend, size=sizes[0], runs=tile_runs, warmup=warmup, gpu=gpu, progress=progress
            )
            memory = [runtime_memory(backend)]
            photo_s, photo_size = None, None
            if fresh_process:
                with progress.task("Restoring in a fresh process"), tempfile.TemporaryDirectory() as folder:
                    files = photo or _synthetic_photo(bundle, sizes[0], settings, Path(folder))
                    fresh = restore_afresh(bundle, files, settings, gpu=gpu, no_gpu=no_gpu)
                memory = [*fresh.memory, *memory]
                if fresh.seconds is not None:
                    photo_s, photo_size = fresh.seconds, f"{fresh.width}x{fresh.height}"
    finally:
        if gpu is not None:
            gpu.close()
    tile_s = percentiles(tiles.seconds)
    return Cost(
        stages=tuple(stages),
        tile_s=tile_s,
        tiles_per_s=1 / tile_s["p50"] if tile_s["p50"] > 0 else None,
        photo_s=photo_s,
        photo=photo_size,
        load_s=sum(stage.load_s for stage in stages if stage.size == str(sizes[0])),
        memory=tuple(memory),
        energy_j=tiles.energy_j,
        energy_method=_energy_method(tiles.energy_j, settings.provider, no_gpu),
        clocks=state.clocks,
        load_average=state.load,
    )


def cost_of_run(
    bundle: Bundle, settings: RestoreOptions, photo: LivePhoto[Path], output: Path, *, show_progress: bool = False
) -> Cost:
    """What one restoration in a process of its own cost, for a photo that is wanted anyway: nothing is run twice, so
    there are no single stages and no warm-up.

    Args:
        bundle: opened.
        settings: how it restores.
        photo: the images.
        output: where the restored photo stays.
        show_progress: let the process draw its bars on stderr.

    Raises:
        EngineError: the command failed.
        ResourceError: memory ran out.
    """
    gpu, no_gpu = open_gpu() if settings.provider.lower() in GPU_PROVIDERS else (None, "")
    try:
        with watch_state(gpu) as state:
            fresh = restore_afresh(
                bundle, photo, settings, output=output, gpu=gpu, no_gpu=no_gpu, show_progress=show_progress
            )
    finally:
        if gpu is not None:
            gpu.close()
    tile_s = percentiles(fresh.tile_s) if fresh.tile_s else {}
    return Cost(
        stages=(),
        tile_s=tile_s,
        tiles_per_s=1 / tile_s["p50"] if tile_s.get("p50") else None,
        photo_s=fresh.seconds,
        photo=f"{fresh.width}x{fresh.height}" if fresh.seconds is not None else None,
        load_s=fresh.load_s,
        memory=fresh.memory,
        energy_method="not counted in a single run",
        clocks=state.clocks,
        load_average=state.load,
    )


def cost_checks(cost: Cost) -> tuple[Check, ...]:
    """The numbers by name, informative: what a later run's ``--baseline`` compares.

    ``cost.STAGE.SIZE.p50_s``, ``cost.tile.p50_s``, ``cost.load_s``, ``cost.photo_s``, ``cost.KIND.bytes``,
    ``cost.energy_j``; what was not measured is missing.
    """
    found: list[tuple[str, float | None, str, str]] = [
        (f"cost.{stage.stage}.{stage.size}.p50_s", stage.p50_s, "s", f"p90 {stage.p90_s:.4g} s, {stage.runs} runs")
        for stage in cost.stages
    ]
    found += [
        ("cost.tile.p50_s", cost.tile_s.get("p50"), "s", "a whole tile"),
        ("cost.load_s", cost.load_s, "s", "all engines"),
        ("cost.photo_s", cost.photo_s, "s", f"{cost.photo}, in a fresh process"),
        ("cost.energy_j", cost.energy_j, "J", cost.energy_method),
    ]
    found += [(f"cost.{memory.kind}.bytes", memory.bytes, "bytes", memory.method) for memory in cost.memory]
    return tuple(
        Check(name=name, value=value, limit=None, unit=unit, better="lower", status="info", detail=detail)
        for name, value, unit, detail in found
        if value is not None
    )


def _synthetic_photo(bundle: Bundle, tile: Size, settings: RestoreOptions, folder: Path) -> LivePhoto[Path]:
    frame, photo = batch_photo(bundle, tile, settings.batch, seed=settings.seed)
    files = LivePhoto(folder / "frame.png", folder / "photo.png", folder / "photo_frame.png")
    for path, picture in ((files.frame, frame), (files.photo, photo), (files.photo_frame, frame)):
        assert path is not None
        write_image(path, picture.pixels)
    return files


def _energy_method(energy_j: float | None, provider: str, no_gpu: str) -> str:
    if provider.lower() not in GPU_PROVIDERS:
        return f"the provider '{provider}' uses no NVIDIA GPU"
    if energy_j is None:
        return no_gpu or "NVML: this GPU or driver does not count energy"
    return "NVML's total energy counter: the whole GPU, idle power included"
