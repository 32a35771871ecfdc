"""Recordings in the golden format: what upstream's own code, or the reference made like it, computed on one photo.

A golden recording is a folder: a checkpoint in upstream's layout (or ``meta.json``'s ``make_checkpoint``, the arguments
with which to make it), ``images/{lr,ref,ref_lr}/``, ``expected.npz`` with every intermediate by name, and ``meta.json``
with the sizes: ``tile_size``, ``tile_overlap``, ``steps``, ``lr_res``, ``ref_res``.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.errors import FileError
from livemoments.manifest import SchedulePoint, Source
from livemoments.runtime.image_files.photo import read_photo
from livemoments.schedule import NOISE_LEVEL, sigma_at, step_indices
from livemoments.store.files import read_file
from livemoments.types import Size
from livemoments.validate.recording.schema import (
    LR,
    RECORDING_SCHEMA,
    REF,
    REF_LR,
    Detail,
    ImageEntry,
    RecordingMeta,
    RecordingSettings,
    Selection,
    TileEntry,
)
from livemoments.validate.recording.store import Recording

_TRAIN_STEPS = 1000
_FIX = "name a folder in the golden format"


class GoldenRecording(Recording):
    """Upstream's computation on one photo, read like any other recording.

    ``meta.settings.upstream`` is true and ``meta.model`` is ``None``; nothing was hashed, and the checkpoint's hashes
    are not known. The noise of tiles that were not recorded is missing.

    Args:
        folder: the recording's folder.
        images: the folder with ``lr/``, ``ref/`` and ``ref_lr/``; by default the recording's own.

    Raises:
        FileError: a file is missing, or is not what it should be.
    """

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        self._description = _read_description(folder / "meta.json")
        self._arrays = _read_arrays(folder / "expected.npz")
        files = _find_images(images or folder / "images")
        super().__init__(folder, _meta(folder, self._description, self._arrays, files))

    def _known(self, image: str) -> dict[str, np.ndarray]:
        self.entry(image)
        return self._arrays

    def _read(self, image: str, name: str) -> np.ndarray:
        return self._arrays[name]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Path]:
        """The recording's checkpoint: its own folder, or one that is made afresh, which needs torch.

        Raises:
            FileError: ``make_checkpoint`` of ``meta.json`` is not a mapping of arguments.
        """
        arguments = self._description.get("make_checkpoint")
        if arguments is None:
            yield self.path
            return
        if not isinstance(arguments, dict):
            raise FileError(self.path / "meta.json", "make_checkpoint is not a mapping of arguments")
        from livemoments.reference.random_checkpoint import make_checkpoint

        with tempfile.TemporaryDirectory(prefix="livemoments-golden-") as folder:
            yield make_checkpoint(Path(folder) / "checkpoint", **arguments)


def _meta(
    folder: Path, description: dict[str, Any], arrays: dict[str, np.ndarray], images: dict[str, Path]
) -> RecordingMeta:
    def number(name: str) -> float:
        value = description.get(name)
        if not isinstance(value, int | float):
            raise FileError(folder / "meta.json", f"has no number '{name}'")
        return value

    def array(name: str) -> np.ndarray:
        if name not in arrays:
            raise FileError(folder / "expected.npz", f"has no '{name}'", fix="record it again")
        return arrays[name]

    side, steps = int(number("tile_size")), int(number("steps"))
    sigmas = [sigma_at(index) for index in step_indices(steps)]
    detail: Detail = "keys-values" if any(".kv." in name for name in arrays) else "stages"
    frame, scale = read_photo(images[LR]).size, number("ref_res") / number("lr_res")
    entry = ImageEntry(
        files={role: os.path.relpath(path, folder) for role, path in images.items()},
        size=str(Size(int(frame.height * scale), int(frame.width * scale))),  # as upstream resizes a frame
        padded=str(Size(*(int(length) for length in array("lq_padded_shape")[-2:]))),
        tiles=tuple(
            TileEntry(y=int(y), x=int(x), height=side, width=side, ref_y=int(ref_y), ref_x=int(ref_x))
            for (y, x), (ref_y, ref_x) in zip(array("tile_indices"), array("ref_patch_coords"), strict=True)
        ),
        detail=detail,
        tensors=(),
    )
    return RecordingMeta(
        schema=RECORDING_SCHEMA,
        created="",
        producer=", ".join(f"{name} {description[name]}" for name in ("torch", "diffusers") if name in description),
        source=Source(name=folder.resolve().name, files={}),
        dtype="float32",
        settings=RecordingSettings(
            tile=str(Size(side, side)),
            overlap=int(number("tile_overlap")),
            steps=steps,
            policy="per-step",
            schedule=tuple(SchedulePoint(timestep=sigma * _TRAIN_STEPS, sigma=sigma) for sigma in sigmas),
            noise_level=NOISE_LEVEL,
            seed=None,
            upstream=True,
        ),
        model=None,
        detail=detail,
        selection=Selection(),
        images={images[LR].stem: entry},
        files={},
    )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(read_file(path))
    except (OSError, ValueError) as error:
        raise FileError(path, f"not readable ({error})", fix=_FIX) from None
    if not isinstance(description, dict):
        raise FileError(path, "holds no JSON object")
    return description


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileError(path, f"not readable ({error})", fix=_FIX) from None


def _find_images(folder: Path) -> dict[str, Path]:
    roles = (LR, REF, REF_LR)
    by_role = {role: {f.name: f for f in sorted((folder / role).glob("*")) if f.is_file()} for role in roles}
    common = sorted(set.intersection(*(set(files) for files in by_role.values())))
    if len(common) != 1:
        count = "no file name" if not common else f"{len(common)} file names"
        raise FileError(
            folder, f"lr/, ref/ and ref_lr/ have {count} in common", fix="keep one image of a recording there"
        )
    return {role: by_role[role][common[0]] for role in roles}
