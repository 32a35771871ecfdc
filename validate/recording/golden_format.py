"""Recordings in the golden format (``expected.npz``, ``meta.json``), read like any other recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from livemoments.errors import FileError
from livemoments.manifest import SchedulePoint, Source
from livemoments.runtime.image_files.photo import read_photo
from livemoments.schedule import NOISE_LEVEL, sigma_at, step_indices
from livemoments.types import Size
from livemoments.validate import golden
from livemoments.validate.recording.schema import (
    LR,
    RECORDING_SCHEMA,
    Detail,
    ImageEntry,
    RecordingMeta,
    RecordingSettings,
    Selection,
    TileEntry,
)
from livemoments.validate.recording.store import Recording

_TRAIN_STEPS = 1000


class GoldenRecording(Recording):
    """Upstream's computation (or the reference's, made like upstream's) on one photo.

    ``meta.settings.upstream`` is true and ``meta.model`` is ``None``; nothing was hashed, and the checkpoint's hashes
    are not known. The noise of tiles that were not recorded is missing.

    Raises:
        FileError: a file is missing, or is not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        self._golden = golden.Recording(folder)
        self._image = self._golden.image_paths[LR].stem
        super().__init__(folder, _meta(self._golden, self._image))

    def _known(self, image: str) -> dict[str, np.ndarray]:
        self.entry(image)
        return self._golden.arrays

    def _read(self, image: str, name: str) -> np.ndarray:
        return self._golden.arrays[name]


def _meta(recording: golden.Recording, image: str) -> RecordingMeta:
    folder, arrays = recording.folder, recording.arrays
    settings = RecordingSettings(
        tile=str(recording.tile),
        overlap=recording.overlap,
        steps=recording.steps,
        policy="per-step",
        schedule=tuple(
            SchedulePoint(timestep=sigma_at(index) * _TRAIN_STEPS, sigma=sigma_at(index))
            for index in step_indices(recording.steps)
        ),
        noise_level=NOISE_LEVEL,
        seed=None,
        upstream=True,
    )
    detail: Detail = "keys-values" if any(".kv." in name for name in arrays) else "stages"
    entry = ImageEntry(
        files={role: path.relative_to(folder).as_posix() for role, path in recording.image_paths.items()},
        size=str(recording.upscaled(read_photo(recording.image_paths[LR]).size)),
        padded=str(Size(*(int(length) for length in _array(recording, "lq_padded_shape")[-2:]))),
        tiles=_tiles(recording),
        detail=detail,
        tensors=(),
    )
    return RecordingMeta(
        schema=RECORDING_SCHEMA,
        created="",
        producer=_producer(recording.meta),
        source=Source(name=folder.resolve().name, files={}),
        dtype="float32",
        settings=settings,
        model=None,
        detail=detail,
        selection=Selection(),
        images={image: entry},
        files={},
    )


def _tiles(recording: golden.Recording) -> tuple[TileEntry, ...]:
    corners, places = _array(recording, "ref_patch_coords"), _array(recording, "tile_indices")
    tile = recording.tile
    return tuple(
        TileEntry(y=int(y), x=int(x), height=tile.height, width=tile.width, ref_y=int(ref_y), ref_x=int(ref_x))
        for (y, x), (ref_y, ref_x) in zip(places, corners, strict=True)
    )


def _array(recording: golden.Recording, name: str) -> np.ndarray:
    found = recording.arrays.get(name)
    if found is None:
        raise FileError(recording.folder / "expected.npz", f"has no '{name}'", fix="record it again")
    return found


def _producer(meta: dict[str, Any]) -> str:
    return ", ".join(f"{name} {meta[name]}" for name in ("torch", "diffusers") if name in meta)
