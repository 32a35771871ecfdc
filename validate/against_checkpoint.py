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
from livemoments.progress import SILENT, Progress
from livemoments.reference.layout import locate
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.images import write_image
from livemoments.types import Size, Stage
from livemoments.validate.clip import Clip
from livemoments.validate.harness.settings import RunSettings
from livemoments.validate.ladder.all_points import all_points, check_source
from livemoments.validate.ladder.bisect import bisect
from livemoments.validate.ladder.replay import climb
from livemoments.validate.ladder.rungs import LEVELS, Level
from livemoments.validate.policy_cost import made_up_clip
from livemoments.validate.recording.pipeline import record
from livemoments.validate.recording.schema import Detail
from livemoments.validate.report_data import Bisection, Rung


@dataclass(frozen=True)
class Parity:
    """The ladder, and where the engine leaves the reference if that was asked for."""

    rungs: tuple[Rung, ...]
    bisection: Bisection | None = None


def compare_with_checkpoint(
    bundle: Bundle,
    checkpoint: Path,
    clip: Clip | None,
    settings: RunSettings,
    *,
    levels: Collection[Level],
    find_fault: bool,
    limits: PrecisionLimits,
    backend: Backend,
    progress: Progress = SILENT,
) -> Parity:
    """Climb the ladder with the PyTorch reference of a checkpoint.

    Networks are compared at every tile size and schedule point; blocks, steps, tiles and the photo on one photo at one
    tile size, blocks at its first and last step.

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
    is_whole = {str(stage) for stage in Stage} <= set(bundle.manifest.stages)
    if not is_whole or not (others or find_fault):
        return Parity(rungs)
    tile = Size.parse(settings.tile) if settings.tile else smallest_tile(bundle)
    steps = settings.steps or bundle.manifest.schedule.default_steps
    detail: Detail = "modules" if find_fault else "blocks" if "block" in levels else "stages"
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
            detail_steps=sorted({0, steps - 1}),
            progress=progress,
        )
        climbed = climb(bundle, recording, levels=others, backend=backend, limits=limits, progress=progress)
        found = bisect(bundle, recording, backend=backend, limits=limits, progress=progress) if find_fault else None
    return Parity(tuple(sorted((*climbed, *rungs), key=lambda rung: LEVELS.index(rung.level))), found)


def smallest_tile(bundle: Bundle) -> Size:
    """The tile size of a bundle that is quickest to compute."""
    return min(bundle.tile_sizes, key=lambda size: size.height * size.width)


def _write_made_up(folder: Path, tile: Size, seed: int) -> Clip:
    """The made-up clip as files."""
    clip = Clip(folder / "frame.png", folder / "photo.png", folder / "photo_frame.png", name="made-up")
    paths = (clip.frame, clip.photo, folder / "photo_frame.png")
    for path, photo in zip(paths, made_up_clip(tile, seed), strict=True):
        write_image(path, photo.pixels)
    return clip
