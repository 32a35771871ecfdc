"""A recording of the tiny checkpoint with everything in it, made once; recordings that lack some of it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from livemoments.simulated_clip import simulate_live_photo, synthetic_photograph
from livemoments.types import Size
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.store import Recording

TILE, OVERLAP, STEPS = Size(128, 128), 16, 3
"""The tiny bundle's."""
BLOCKS = 4
_made: dict[Path, Path] = {}


def recording_of(checkpoint: Path, factory: pytest.TempPathFactory) -> Recording:
    """Two tiles of a simulated Live Photo; modules of all blocks at the first tile's first and last step."""
    if checkpoint not in _made:
        from livemoments.validate.recording.pipeline import record

        folder = factory.mktemp("ladder")
        live = simulate_live_photo(synthetic_photograph(Size(148, 200), seed=1), seed=1)
        for role, pixels in (("lr", live.frame), ("ref", live.photo), ("ref_lr", live.photo_frame)):
            (folder / "set" / role).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / "set" / role / "a.png")
        record(
            checkpoint,
            folder / "set",
            folder / "recording",
            tile=TILE,
            overlap=OVERLAP,
            steps=STEPS,
            detail="modules",
            detail_steps=(0, STEPS - 1),
            blocks=range(BLOCKS),
        )
        _made[checkpoint] = folder / "recording"
    return open_recording(_made[checkpoint])


class Without(Recording):
    """A recording as if some tensors had not been recorded: those whose names match."""

    def __init__(self, inner: Recording, pattern: str) -> None:
        super().__init__(inner.path, inner.meta)
        self._inner = inner
        self._pattern = re.compile(pattern)

    def _known(self, image: str) -> dict[str, None]:
        return {name: None for name in self._inner.names(image) if not self._pattern.search(name)}

    def _read(self, image: str, name: str) -> np.ndarray:
        return self._inner.read(image, name)


class InHalf(Without):
    """A recording as if it had been stored in float16."""

    def __init__(self, inner: Recording) -> None:
        super().__init__(inner, "^$")
        self.meta = msgspec.structs.replace(inner.meta, dtype="float16")

    def _read(self, image: str, name: str) -> np.ndarray:
        found = self._inner.read(image, name)
        return found.astype(np.float16) if found.dtype.kind == "f" else found
