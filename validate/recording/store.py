"""Reading a recording of the reference, anywhere: numpy and safetensors, no torch.

A recording is a folder (``docs/recordings.md``)::

    recording.json                              conditions, and size and SHA-256 of every file; written last
    images/{lr,ref,ref_lr,gt,result}/NAME.png   the inputs, copied, and the reference's 8-bit result
    tensors/NAME/photo.safetensors              photo.flow_lr, ref_patch_coords, photo.stitched, …
    tensors/NAME/tile0.safetensors              tile0.flow, tile0.z_lq, tile0.step0.velocity, …
    tensors/NAME/tile0.step0.kv.safetensors     keys and values; likewise .blocks and .modules

:func:`open_recording` checks it; :meth:`Recording.read` takes one tensor from its file at a time.
"""

from __future__ import annotations

import abc
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from livemoments.bundle import hash_file, size_of_listed
from livemoments.errors import FileError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.types import ReferencePolicy, Size
from livemoments.validate.recording.schema import (
    META_NAME,
    RECORDING_SCHEMA,
    RESULT,
    ImageEntry,
    RecordingMeta,
)

if TYPE_CHECKING:
    from livemoments.manifest import FileEntry

_AGAIN = "copy the recording again, or make it again with 'livemoments record'"
_RESULT_NAME = "photo.result"


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
        found = self.meta.images.get(image)
        if found is None:
            raise FileError(
                self.path, f"no photo '{image}' was recorded", fix=f"use one of {', '.join(self.images[:5])}"
            )
        return found

    def image_path(self, image: str, role: str) -> Path | None:
        """The file of a photo's ``lr``, ``ref``, ``ref_lr``, ``gt`` or ``result``; ``None`` if there is none."""
        name = self.entry(image).files.get(role)
        return None if name is None else self.path / name

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
        found = self._read(image, name)
        return found.astype(np.float32) if found.dtype.kind == "f" else found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.images)} photos, {self.meta.detail})"


class StoredRecording(Recording):
    """A recording in the format of ``livemoments record``; use :func:`open_recording`."""

    def __init__(self, path: Path, meta: RecordingMeta) -> None:
        super().__init__(path, meta)
        self._index: tuple[str, dict[str, str]] | None = None  # of one photo: memory does not grow with their number

    def _read(self, image: str, name: str) -> np.ndarray:
        from livemoments.validate.recording.tensor_file import read_tensor

        place = self._known(image)[name]
        if place in self.entry(image).files.values():  # the 8-bit result is kept as a picture only
            from livemoments.runtime.image_files.photo import read_photo

            return read_photo(self.path / place).pixels
        return read_tensor(self.path / place, name)

    def _known(self, image: str) -> dict[str, str]:
        from livemoments.validate.recording.tensor_file import tensor_names

        entry = self.entry(image)
        if self._index is not None and self._index[0] == image:
            return self._index[1]
        found: dict[str, str] = {}
        for file in entry.tensors:
            for name in tensor_names(self.path / file):
                if name in found:
                    raise FileError(self.path / file, f"holds '{name}', which {found[name]} holds too", fix=_AGAIN)
                found[name] = file
        if RESULT in entry.files:
            found.setdefault(_RESULT_NAME, entry.files[RESULT])
        self._index = (image, found)
        return found


def open_stored(folder: Path, *, verify_hashes: bool = True, progress: Progress = SILENT) -> Recording:
    """Open a recording in the format of ``livemoments record`` and check it; see :func:`open_recording`."""
    meta = _read_meta(folder)
    _check_paths(folder, meta)
    total = sum(entry.bytes for entry in meta.files.values())
    with progress.task("Checking the recording", total) as task:
        for name, entry in meta.files.items():
            _check_file(folder / name, entry, verify_hash=verify_hashes)
            task.advance(entry.bytes)
    return StoredRecording(folder, meta)


def _read_meta(folder: Path) -> RecordingMeta:
    file = folder / META_NAME
    try:
        if not folder.exists():
            raise FileError(folder, "no such recording", fix="make one with 'livemoments record CHECKPOINT -o FOLDER'")
        if not file.is_file():
            raise FileError(
                folder,
                f"not a recording: there is no {META_NAME} in it",
                fix="name the folder that 'livemoments record' wrote; if it was interrupted, run it again",
            )
        text = file.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(file, f"cannot be read ({reason})", fix="check the path and its permissions") from None
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(file, f"not valid JSON ({error})", fix=_AGAIN) from None
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != RECORDING_SCHEMA:
        raise FileError(
            file,
            f"schema {schema!r} is not known; this release reads '{RECORDING_SCHEMA}'",
            fix="use the release that wrote it, or record again",
        )
    try:
        meta = msgspec.json.decode(text, type=RecordingMeta)
        _check_values(meta)
    except (msgspec.MsgspecError, UsageError, ValueError) as error:
        reason = error.message if isinstance(error, UsageError) else str(error)
        raise FileError(file, f"malformed: {reason}", fix=_AGAIN) from None
    return meta


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


def _check_paths(folder: Path, meta: RecordingMeta) -> None:
    root = os.path.realpath(folder)
    for name in meta.files:
        parts = PurePosixPath(name)
        if not name or "\0" in name:
            raise FileError(folder / META_NAME, f"names {name!r}, which is no file name", fix=_AGAIN)
        escapes = parts.is_absolute() or ".." in parts.parts or "\\" in name
        if escapes or not Path(os.path.realpath(folder / name)).is_relative_to(root):
            raise FileError(
                folder / META_NAME,
                f"names '{name}', which leaves the recording's folder",
                fix="do not use this recording unless you trust who made it; record again",
            )


def _check_file(file: Path, entry: FileEntry, *, verify_hash: bool) -> None:
    size = size_of_listed(file, FileError)
    if size is None:
        raise FileError(file, f"missing: {META_NAME} lists this file", fix=_AGAIN)
    if size != entry.bytes:
        raise FileError(file, f"is {size} bytes long, {META_NAME} says {entry.bytes}", fix=_AGAIN)
    if verify_hash and hash_file(file).sha256 != entry.sha256:
        raise FileError(file, f"its SHA-256 is not {META_NAME}'s: the file was changed or damaged", fix=_AGAIN)
