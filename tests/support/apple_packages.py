"""What Core ML's and Core AI's packages are held to alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from places import GOLDEN

from livemoments.bundle import Bundle
from livemoments.export.pipeline import export_bundle
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.image_files.photo import Photo
from livemoments.types import Size
from livemoments.validate.ladder.compare import compare
from livemoments.validate.recording.golden_format import GoldenRecording

GOLDEN_FRAME = Size(64, 88)
"""The golden case's video frames, rounded up to what RAFT takes."""


def pictures(rng: np.random.Generator) -> tuple[Photo, Photo]:
    """A photo of 160 x 128 pixels with structure in it, and a frame of half its size."""
    y, x = np.mgrid[0:128, 0:160]
    waves = [np.sin(x / rng.uniform(4, 12) + phase) * np.cos(y / rng.uniform(4, 12)) for phase in range(3)]
    photo = np.clip(np.stack(waves, -1) * 60 + 128, 0, 255).astype(np.uint8)
    return Photo(photo), Photo(np.ascontiguousarray(photo[::2, ::2]))


def export_for_golden(checkpoint: Path, output: Path, **options: Any) -> Bundle:
    """All six stages of the tiny checkpoint in half precision, for the golden case's tiles, frames and steps."""
    settings = GoldenRecording(GOLDEN).meta.settings
    usual: dict[str, Any] = {
        "precision": "fp16",
        "tiles": (Size.parse(settings.tile),),
        "overlap": settings.overlap,
        "steps": (settings.steps,),
        "flow_sizes": [GOLDEN_FRAME],
        "verify": "sampled",
    }
    return export_bundle(checkpoint, output, **(usual | options))


def check_golden(bundle: Bundle, backend: Backend, least_db: float = 45.0) -> None:
    """Every recorded intermediate is within its limit, and the photo near enough to the recorded one."""
    rungs = compare(bundle, GoldenRecording(GOLDEN), levels=("network", "step", "tile", "photo"), backend=backend)
    assert [rung for rung in rungs if rung.status not in ("pass", "info")] == []
    photo = next(rung for rung in rungs if rung.name == "result")
    assert photo.psnr_db is not None
    assert photo.psnr_db >= least_db
    steps = {f"step{step}.velocity" for step in range(6)}
    assert {rung.name for rung in rungs if rung.status == "pass"} >= {"flow", "z_out", *steps}
