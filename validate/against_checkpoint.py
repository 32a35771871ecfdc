"""Parity against a checkpoint: the reference is recorded first, then forgotten, and the engines are held against that.

So reference and engines are never in memory together, and one code path (:mod:`livemoments.validate.ladder`) compares
with checkpoints and with recordings. Needs torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.limits import PrecisionLimits
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.layout import locate
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size
from livemoments.validate.ladder.all_points import all_points, check_source
from livemoments.validate.ladder.bisect import bisect
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.rungs import LEVELS, Level
from livemoments.validate.policy_cost import made_up_live_photo, smallest_tile
from livemoments.validate.recording.pipeline import record
from livemoments.validate.recording.schema import Detail
from livemoments.validate.report_data import Bisection, Rung

INNER_BUDGET_BYTES = 8 << 30
"""What the reference's inner tensors may take on the disk without ``find_fault``; beyond it, only blocks are recorded,
and with it only one step's."""
_WIDTHS_PER_BLOCK = 17
"""What the modules of a block give, in widths of the network: norms, projections, attention, the wide feed-forward."""


@dataclass(frozen=True)
class Parity:
    """The ladder, and where the engine leaves the reference if that was asked for."""

    rungs: tuple[Rung, ...]
    bisection: Bisection | None = None


def compare_with_checkpoint(
    bundle: Bundle,
    checkpoint: Path,
    clip: LivePhoto[Path] | None,
    settings: RestoreOptions,
    *,
    levels: Collection[Level],
    find_fault: bool,
    limits: PrecisionLimits,
    backend: Backend,
    progress: Progress = SILENT,
) -> Parity:
    """Climb the ladder with the PyTorch reference of a checkpoint.

    Networks are compared at every tile size and schedule point; blocks, steps, tiles and the photo on one photo at one
    tile size, blocks and their modules at its first and last step (modules as far as their tensors fit on the disk).

    Args:
        bundle: opened.
        checkpoint: what it was exported from.
        clip: what to restore; ``None``: a made-up pair a little larger than a tile.
        settings: seed, steps, policy and tile size.
        levels: which rungs.
        find_fault: also bisect; the reference's inner tensors are recorded for it.
        limits: of the bundle's precision.
        backend: what runs the engines.
        progress: where to report.

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
        return Parity(rungs)
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
            clip or _write_made_up(folder, tile, settings.seed),
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
        found = bisect(bundle, recording, backend=backend, limits=limits, progress=progress) if find_fault else None
    return Parity(tuple(sorted((*climbed, *rungs), key=lambda rung: LEVELS.index(rung.level))), found)


def inner_tensors_bytes(bundle: Bundle, tile: Size) -> int:
    """About what the inner tensors of both transformers take for a tile at two steps, in float32."""
    model = bundle.manifest.model
    side = model.vae_scale * model.patch_size
    tokens = (tile.height // side) * (tile.width // side) + model.text_tokens
    width = model.num_heads * model.head_dim
    return 2 * 2 * model.num_blocks * tokens * width * _WIDTHS_PER_BLOCK * 4


def _write_made_up(folder: Path, tile: Size, seed: int) -> LivePhoto[Path]:
    """The made-up one as files."""
    files = LivePhoto(folder / "frame.png", folder / "photo.png", folder / "photo_frame.png", name="made-up")
    images = made_up_live_photo(tile, seed).parts()
    for part, path in files.parts().items():
        write_image(path, images[part].pixels)
    return files
