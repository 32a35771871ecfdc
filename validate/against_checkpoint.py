"""Parity against a checkpoint: the reference is recorded first, then forgotten, and the engines are held against that.

So reference and engines are never in memory together, and one code path (:mod:`livemoments.validate.ladder`) compares
with checkpoints and with recordings. Needs torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.limits import PrecisionLimits
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.layout import locate
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size
from livemoments.validate.ladder.all_points import all_points, check_source
from livemoments.validate.ladder.bisect import bisect
from livemoments.validate.ladder.compare import compare
from livemoments.validate.made_up_photo import made_up_live_photo, smallest_tile, write_live_photo
from livemoments.validate.recording.pipeline import record
from livemoments.validate.recording.schema import Detail
from livemoments.validate.report_data import LEVELS, Bisection, Level, Rung

INNER_BUDGET_BYTES = 8 << 30
"""What the reference's inner tensors may take on the disk without ``find_fault``; beyond it, only blocks are recorded,
and with it only one step's."""
_WIDTHS_PER_BLOCK = 17
"""What the modules of a block give, in widths of the network: norms, projections, attention, the wide feed-forward."""


def compare_with_checkpoint(
    bundle: Bundle,
    checkpoint: Path,
    live_photo: LivePhoto[Path] | None,
    settings: RestoreOptions,
    *,
    levels: Collection[Level],
    find_fault: bool,
    limits: PrecisionLimits,
    backend: Backend,
    progress: Progress = SILENT,
) -> tuple[tuple[Rung, ...], Bisection | None]:
    """Climb the ladder with the PyTorch reference of a checkpoint.

    Networks are compared at every tile size and schedule point; blocks, steps, tiles and the photo on one photo at one
    tile size, blocks and their modules at its first and last step (modules as far as their tensors fit on the disk).

    Args:
        bundle: opened.
        checkpoint: what it was exported from.
        live_photo: what to restore; ``None``: a made-up one a little larger than a tile.
        settings: seed, steps, policy and tile size.
        levels: which rungs.
        find_fault: also bisect; the reference's inner tensors are recorded for it.
        limits: of the bundle's precision.
        backend: what runs the engines.
        progress: where to report.

    Returns:
        The rungs, and where the engine leaves the reference if that was asked for.

    Raises:
        BundleError: the bundle was not exported from this checkpoint.
        CheckpointError, ImageError, EngineError, OutputError, ResourceError: as recording and climbing raise them.
    """
    files = locate(checkpoint)
    check_source(bundle, files, progress)
    rungs: tuple[Rung, ...] = ()
    if "network" in levels:
        rungs = all_points(bundle, files, limits=limits, seed=settings.seed, backend=backend, progress=progress)
    others: list[Level] = [level for level in levels if level != "network"]
    if bundle.missing_stages or not (others or find_fault):
        return rungs, None
    tile = settings.tile or smallest_tile(bundle)
    steps = settings.steps or bundle.manifest.schedule.default_steps
    inner_bytes = inner_tensors_bytes(bundle, tile)
    detail: Detail = "stages"
    if find_fault or ("block" in levels and inner_bytes <= INNER_BUDGET_BYTES):
        detail = "modules"
    elif "block" in levels:
        detail = "blocks"
    with tempfile.TemporaryDirectory(prefix="livemoments-parity-") as name:
        folder = Path(name)
        recording = record(
            checkpoint,
            live_photo or write_live_photo(made_up_live_photo(tile, settings.seed), folder),
            folder / "recording",
            tile=tile,
            overlap=bundle.manifest.overlap,
            steps=steps,
            policy=settings.policy(bundle),
            seed=settings.seed,
            detail=detail,
            detail_steps=sorted({0, steps - 1}) if inner_bytes <= INNER_BUDGET_BYTES else (0,),
            blocks=range(bundle.manifest.model.num_blocks) if detail == "modules" else None,
            progress=progress,
        )
        climbed = compare(bundle, recording, levels=others, backend=backend, limits=limits, progress=progress)
        bisection = bisect(bundle, recording, backend=backend, limits=limits, progress=progress) if find_fault else None
    return tuple(sorted((*climbed, *rungs), key=lambda rung: LEVELS.index(rung.level))), bisection


def inner_tensors_bytes(bundle: Bundle, tile: Size) -> int:
    """About what the inner tensors of both transformers take for a tile at two steps, in float32."""
    model = bundle.manifest.model
    side = model.vae_scale * model.patch_size
    tokens = (tile.height // side) * (tile.width // side) + model.text_tokens
    width = model.num_heads * model.head_dim
    return 2 * 2 * model.num_blocks * tokens * width * _WIDTHS_PER_BLOCK * 4
