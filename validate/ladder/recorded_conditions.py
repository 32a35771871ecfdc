"""Whether a bundle can be held against a recording, and restoring a photo under the recording's conditions."""

from __future__ import annotations

import msgspec
import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, FileError
from livemoments.limits import PrecisionLimits
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.flow import FlowOfTile
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import RestoreResult, restore
from livemoments.runtime.sampler import Observer
from livemoments.runtime.schedule import plan_steps
from livemoments.types import Size, Tile
from livemoments.validate.recording.cases import schedule_point
from livemoments.validate.recording.schema import DETAILS
from livemoments.validate.recording.store import Recording

HALF_RECORDING_REL_L2 = 2e-3
"""What a recording in float16 cannot tell from nothing: its rounding (3e-4) of what goes in, and of what comes out."""


def check_fits(bundle: Bundle, recording: Recording) -> None:
    """Refuse a bundle that was made from another checkpoint, or for other conditions.

    Raises:
        BundleError: naming the difference and how to export.
        UsageError: the bundle cannot sample with the recording's number of steps.
    """
    manifest, settings = bundle.manifest, recording.meta.settings
    known = recording.meta.source.files
    if differing := sorted(name for name in known if manifest.source.files.get(name) != known[name]):
        raise BundleError(
            bundle.path,
            f"was not exported from the recording's checkpoint: {', '.join(differing[:3])} differ",
            fix=f"export '{recording.meta.source.name}', or make a recording of this bundle's checkpoint",
        )
    model = recording.meta.model
    if model is not None and model.flow != manifest.model.flow:
        raise BundleError(
            bundle.path,
            f"was exported with flow: {manifest.model.flow}, the recording was made with {model.flow}",
            fix="export again, or record again, with one inference_config.yml",
        )
    if settings.tile not in manifest.tiles or manifest.overlap != settings.overlap:
        raise BundleError(
            bundle.path,
            f"has tiles {', '.join(manifest.tiles)} with overlap {manifest.overlap}, "
            f"the recording {settings.tile} with {settings.overlap}",
            fix=f"export with --tile {settings.tile} --overlap {settings.overlap} --steps {settings.steps}",
        )
    plan = plan_steps(manifest.schedule, settings.steps)
    if [schedule_point(manifest.schedule, point.timestep) for point in settings.schedule] != list(plan):
        raise BundleError(
            bundle.path,
            f"samples {settings.steps} steps at other timesteps than the recording",
            fix=f"export with --steps {settings.steps}",
        )


def limits_for(limits: PrecisionLimits, recording: Recording) -> PrecisionLimits:
    """The limits that a recording allows: one in float16 was rounded itself, whatever the bundle's precision."""
    if recording.meta.dtype == "float32":
        return limits

    names = ("step_rel_l2", "block_rel_l2", "module_rel_l2", "exact_rel_l2")
    held = {name: limit for name in names if (limit := getattr(limits, name)) is not None}
    return msgspec.structs.replace(
        limits,
        stage_rel_l2={stage: max(limit, HALF_RECORDING_REL_L2) for stage, limit in limits.stage_rel_l2.items()},
        **{name: max(limit, HALF_RECORDING_REL_L2) for name, limit in held.items()},
    )


def choose_image(recording: Recording, image: str | None) -> str:
    """The photo to compare: the one that was named, or the first of the finest detail.

    Raises:
        FileError: no such photo, or none at all.
    """
    if image is not None:
        recording.entry(image)
        return image
    if not recording.images:
        raise FileError(recording.path, "holds no photo", fix="record again")
    return max(recording.images, key=lambda name: DETAILS.index(recording.entry(name).detail))


def restore_as_recorded(
    bundle: Bundle,
    recording: Recording,
    image: str,
    *,
    backend: Backend,
    observer: Observer,
    progress: Progress = SILENT,
) -> RestoreResult:
    """Restore a recorded photo with a bundle: the recording's images, tiles, noise, steps and policy.

    Where DIS estimates the flow, the recording's is a condition too. DIS works on grey values in 8 bits: two ways of
    resizing that differ by the last bit of a float round a few pixels apart, and that can move the flow around them by
    whole pixels, whatever the engines do.

    Raises:
        FileError: the recording lacks an image or a tile's noise.
    """
    settings = recording.meta.settings
    options = RestoreOptions(
        steps=settings.steps,
        compat="upstream" if settings.upstream else None,
        reference=settings.policy,
        tile=Size.parse(settings.tile),
        pad_small=not settings.upstream,
        bit_depth=8,
    )
    return restore(
        bundle,
        recording.live_photo(image),
        options,
        noise=recording.noise(image),
        tile_flow=_flow(recording, image) if bundle.manifest.model.flow == "dis" else None,
        upscaled_size=Size.parse(recording.entry(image).size) if settings.upstream else None,
        observer=observer,
        progress=progress,
        backend=backend,
    )


def _flow(recording: Recording, image: str) -> FlowOfTile:
    def of_tile(tile: Tile) -> np.ndarray | None:
        name = f"tile{tile.index}.flow"
        return recording.read(image, name)[0] if recording.has(image, name) else None

    return of_tile
