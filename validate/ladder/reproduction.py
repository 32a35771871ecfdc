"""Whether the PyTorch reference, as it runs here, computes what a recording holds; needs torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import load_reference
from livemoments.reference.pipeline import PipelineSettings, restore_photo
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.types import Size
from livemoments.validate.ladder.rungs import held_to
from livemoments.validate.ladder.tensor_distance import tensor_distance
from livemoments.validate.recording.store import Recording
from livemoments.validate.reference_photo import image_tensor, restore_like_runtime, torch_noise
from livemoments.validate.report_data import Check

REFERENCE_LIMIT = 1e-4
"""Largest relative L2 error of the PyTorch reference in float32, every tensor."""
IMAGE_LIMIT_LEVELS = 1.0
"""8-bit images may differ by one level anywhere: a float rounded the other way."""


def check_reference(
    recording: Recording, checkpoint: Path, *, image: str | None = None, progress: Progress = SILENT
) -> tuple[Check, ...]:
    """Run the PyTorch reference on a recorded photo, under the recording's conditions, and compare tensor by tensor.

    Args:
        recording: opened.
        checkpoint: the one that was recorded.
        image: a photo's name; by default the first.
        progress: where to report.

    Returns:
        A check for each recorded tensor: those that the reference computes in the order in which it does, then the
        others, without a value and with the reason.

    Raises:
        FileError: no such photo, or a damaged recording.
        CheckpointError: the checkpoint cannot be loaded.
    """
    image = recording.images[0] if image is None else image
    settings, entry = recording.meta.settings, recording.entry(image)
    tile, size = Size.parse(settings.tile), Size.parse(entry.size)
    has_noise = [recording.has(image, f"tile{index}.noise") for index in range(len(entry.tiles))]
    skipped = () if all(has_noise) else ("photo.stitched", "photo.before_color_fix", "photo.result")
    checks: dict[str, Check] = {}

    def compare(name: str, value: np.ndarray) -> None:
        if recording.has(image, name) and name not in skipped:
            checks[name] = check_tensor(name, value, recording.read(image, name), REFERENCE_LIMIT)

    files = recording.live_photo(image)
    reference = load_reference(checkpoint, progress=progress)
    if settings.upstream:
        restore_photo(
            reference,
            files.map(lambda path: image_tensor(read_photo(path))),
            size,
            torch_noise(recording.noise(image)),
            PipelineSettings(tile=tile, overlap=settings.overlap, steps=settings.steps),
            only_tiles=lambda tile: has_noise[tile.index],
            observe=compare,
            progress=progress,
        )
    else:
        restore_like_runtime(
            reference,
            load_inputs(files.frame, files.photo, files.photo_frame),
            plan_balanced(size, [tile], settings.overlap, pad_small=True),
            steps=settings.steps,
            seed=settings.seed or 0,
            policy=settings.policy,
            observe=compare,
            progress=progress,
        )
    for name in recording.names(image):
        why = (
            "the recording has the noise of some tiles only" if name in skipped else "the pipeline does not compute it"
        )
        checks.setdefault(name, _not_compared(name, why))
    return tuple(checks.values())


def check_tensor(name: str, value: np.ndarray, expected: np.ndarray, limit: float) -> Check:
    """Compare one tensor by its kind.

    Args:
        name: the tensor's.
        value: what was computed.
        expected: what was recorded. Whole numbers must be equal, 8-bit images within :data:`IMAGE_LIMIT_LEVELS`.
        limit: for floats, the largest relative L2 error.
    """
    distance = tensor_distance(value, expected)
    unit, error = "rel_l2", distance.rel_l2
    if expected.dtype == np.uint8:
        unit, error, limit = "levels", distance.max_abs, IMAGE_LIMIT_LEVELS
    elif expected.dtype.kind != "f":
        unit, error, limit = "count", distance.max_abs, 0.0
    detail = "" if value.shape == expected.shape else f"its shape is {value.shape} instead of {expected.shape}"
    return held_to(name, error, limit, unit, detail)


def _not_compared(name: str, why: str) -> Check:
    return Check(name=name, value=None, limit=None, unit="rel_l2", better="lower", status="info", detail=why)
