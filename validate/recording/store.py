"""Reading a recording of the reference, anywhere: numpy and safetensors, no torch.

A recording is a folder (``docs/recordings.md``)::

    recording.json                              conditions, and size and SHA-256 of every file; written last
    images/{lr,ref,ref_lr,gt,result}/NAME.png   the inputs, copied, and the reference's 8-bit result
    tensors/NAME/photo.safetensors              photo.flow_lr, ref_patch_coords, photo.stitched, …
    tensors/NAME/tile0.safetensors              tile0.flow, tile0.z_lq, tile0.step0.velocity, …
    tensors/NAME/tile0.step0.kv.safetensors     keys and values; .blocks and .modules too

:func:`open_recording` checks it; :meth:`Recording.read` takes one tensor from its file at a time.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from livemoments.errors import FileError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.noise import NoiseSource, RecordedNoise, SeededNoise, TileNoise
from livemoments.store.hashed_folders import HashedFolders
from livemoments.types import ReferencePolicy, Size
from livemoments.validate.recording.schema import (
    LR,
    META_NAME,
    RECORDING_SCHEMA,
    REF,
    REF_LR,
    RESULT,
    ImageEntry,
    RecordingMeta,
)
from livemoments.validate.recording.tensor_file import read_tensor, tensor_names

_AGAIN = "copy the recording again, or make it again with 'livemoments record'"
_RESULT_NAME = "photo.result"
_NOISE = ("lq.posterior_noise", "ref.posterior_noise", "noise")


class Recording(abc.ABC):
    """An opened recording: conditions, images' files, and tensors by name.

    Attributes:
        path: the folder.
        meta: the conditions.
    """

    def __init__(self, path: Path, meta: RecordingMeta) -> None:
        self.path = path
        self.meta = meta

    @property
    def images(self) -> tuple[str, ...]:
        """The photos' names."""
        return tuple(self.meta.images)

    def entry(self, image: str) -> ImageEntry:
        """One photo's entry.

        Raises:
            FileError: no such photo was recorded.
        """
        entry = self.meta.images.get(image)
        if entry is None:
            raise FileError(
                self.path, f"no photo '{image}' was recorded", fix=f"use one of {', '.join(self.images[:5])}"
            )
        return entry

    def image_path(self, image: str, role: str) -> Path | None:
        """The file of a photo's ``lr``, ``ref``, ``ref_lr``, ``gt`` or ``result``; ``None`` if there is none."""
        name = self.entry(image).files.get(role)
        return None if name is None else self.path / name

    def live_photo(self, image: str) -> LivePhoto[Path]:
        """The files that a photo was restored from.

        Raises:
            FileError: no such photo, or its frame or photo is not in the recording.
        """
        frame, photo, photo_frame = (self.image_path(image, role) for role in (LR, REF, REF_LR))
        if frame is None or photo is None:
            raise FileError(self.path, f"holds no input images of '{image}'", fix="record again")
        return LivePhoto(frame, photo, photo_frame, name=image)

    def noise(self, image: str) -> NoiseSource:
        """The noise of a photo's tiles: the recorded one; the seed's where the noise itself was not kept.

        Raises:
            FileError: no such photo, or a damaged file.
        """
        tiles = {}
        for index in range(len(self.entry(image).tiles)):
            names = [f"tile{index}.{part}" for part in _NOISE]
            if self.has(image, *names):
                tiles[index] = TileNoise(*(self.read(image, name)[0] for name in names))
        seed = self.meta.settings.seed
        return SeededNoise(seed) if not tiles and seed is not None else RecordedNoise(tiles)

    @abc.abstractmethod
    def _known(self, image: str) -> Mapping[str, object]:
        """The tensors that were recorded of a photo, by name."""

    def names(self, image: str) -> tuple[str, ...]:
        """Names of the tensors that were recorded of a photo; within a file in the order of computation.

        Raises:
            FileError: no such photo, or a damaged file.
        """
        return tuple(self._known(image))

    @abc.abstractmethod
    def _read(self, image: str, name: str) -> np.ndarray:
        """One tensor as it is stored; the name is known to exist."""

    def has(self, image: str, *names: str) -> bool:
        """Whether all of these tensors were recorded."""
        known = self._known(image)
        return all(name in known for name in names)

    def read(self, image: str, name: str) -> np.ndarray:
        """One tensor: floats as float32, whatever they are stored as; whole numbers as they are.

        Raises:
            FileError: no such photo, it was not recorded, or its file is damaged.
        """
        if name not in self._known(image):
            level = self.entry(image).detail
            raise FileError(
                self.path,
                f"'{name}' of '{image}' was not recorded (detail: {level})",
                fix="record with a finer --detail, or more tiles and steps",
            )
        value = self._read(image, name)
        return value.astype(np.float32) if value.dtype.kind == "f" else value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.images)} photos, {self.meta.detail})"


class StoredRecording(Recording):
    """A recording in the format of ``livemoments record``; use :func:`open_recording`."""

    def __init__(self, path: Path, meta: RecordingMeta) -> None:
        super().__init__(path, meta)
        self._index: tuple[str, dict[str, str]] | None = None  # of one photo: memory does not grow with their number

    def _read(self, image: str, name: str) -> np.ndarray:
        place = self._known(image)[name]
        if place in self.entry(image).files.values():  # the 8-bit result is kept as a picture only
            from livemoments.runtime.image_files.photo import read_photo

            return read_photo(self.path / place).pixels
        return read_tensor(self.path / place, name)

    def _known(self, image: str) -> dict[str, str]:
        entry = self.entry(image)
        if self._index is not None and self._index[0] == image:
            return self._index[1]
        places: dict[str, str] = {}
        for file in entry.tensors:
            for name in tensor_names(self.path / file):
                if name in places:
                    raise FileError(self.path / file, f"holds '{name}', which {places[name]} holds too", fix=_AGAIN)
                places[name] = file
        if RESULT in entry.files:
            places.setdefault(_RESULT_NAME, entry.files[RESULT])
        self._index = (image, places)
        return places


def _check_values(meta: RecordingMeta) -> None:
    """What the types do not say.

    Raises:
        UsageError, ValueError: naming the value.
    """
    Size.parse(meta.settings.tile)
    ReferencePolicy.parse(meta.settings.policy).source_steps(meta.settings.steps)
    if len(meta.settings.schedule) != meta.settings.steps:
        raise ValueError(f"{meta.settings.steps} steps, but a schedule of {len(meta.settings.schedule)}")
    for name, entry in meta.images.items():
        Size.parse(entry.size)
        Size.parse(entry.padded)
        for file in (*entry.files.values(), *entry.tensors):
            if file not in meta.files:
                raise ValueError(f"'{name}' uses '{file}', of which no hash is listed")


RECORDINGS = HashedFolders(
    kind="recording",
    manifest=META_NAME,
    decoded=RecordingMeta,
    version=("schema", "schema", RECORDING_SCHEMA),
    check=_check_values,
    error=FileError,
    listing=META_NAME,
    command="livemoments record CHECKPOINT -o FOLDER",
    verb="record",
    remake=_AGAIN,
    renew=_AGAIN,
)
"""How recordings are read."""
