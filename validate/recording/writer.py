"""Writing a recording: image by image into a hidden folder, ``recording.json`` last, then renamed.

Beside the destination NAME lies ``.NAME.unfinished/`` until everything is done::

    recording/       what becomes NAME
    finished/        one JSON file per finished image, written after its files are on the disk
    lock             held by the process that writes

A process that was killed leaves it; the next one for the same destination takes over the images that were finished
under the same conditions, and computes the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from livemoments.errors import OutputError
from livemoments.manifest import FileEntry
from livemoments.store.claims import BusyError, only_one
from livemoments.store.errors import output_errors
from livemoments.store.files import read_file, sync_file, write_file
from livemoments.store.folders import StagedFolder, check_destination, remove_emptied
from livemoments.store.hashed_folders import encode_manifest, hash_file
from livemoments.validate.recording.schema import META_NAME, ImageEntry, RecordingMeta, StorageType
from livemoments.validate.recording.store import RECORDINGS
from livemoments.validate.recording.tensor_file import TensorWriter

_PLACE = re.compile(r"tile(\d+)(?:\.step(\d+))?\.(.+)")
_KINDS = (
    (re.compile(r"kv\."), "kv"),
    (re.compile(r"\w+\.module\."), "modules"),
    (re.compile(r"\w+\.(embed|block\d+)\."), "blocks"),
)


class _Finished(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A finished image: under which conditions (:func:`condition_key`), its entry, its files."""

    key: str
    entry: ImageEntry
    files: dict[str, FileEntry]


def condition_key(conditions: object) -> str:
    """SHA-256 of what an image's recording depends on: images with equal keys have equal files."""
    return hashlib.sha256(msgspec.json.encode(conditions, order="sorted")).hexdigest()


class ImageWriter:
    """One image's tensors on their way to their files.

    Args:
        root: the recording's folder.
        name: the image's.
        dtype: what floats are stored as.

    Attributes:
        files: what was finished, by path relative to the recording.
    """

    def __init__(self, root: Path, name: str, dtype: StorageType) -> None:
        self.files: dict[str, FileEntry] = {}
        self.name = name
        self._root = root
        self._dtype = dtype
        self._folder = root / "tensors" / name
        self._open: dict[str, TensorWriter] = {}

    def add(self, name: str, value: np.ndarray) -> None:
        """Append one tensor to the file it belongs to. A tile's files are closed when the next tile begins, a step's
        when the next step does.

        Raises:
            UsageError, EngineError: see :meth:`TensorWriter.add`.
        """
        stem, done = _place(name, self._open)
        for other in done:
            self._close(other)
        if stem not in self._open:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._open[stem] = TensorWriter(self._folder / f"{stem}.safetensors", self._dtype)
        self._open[stem].add(name, value)

    def copy(self, role: str, source: Path) -> str:
        """Copy an image file; returns its path relative to the recording."""
        relative = f"images/{role}/{self.name}{source.suffix}"
        target = self._root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return self.take(relative)

    def take(self, relative: str) -> str:
        """Count a file that was written into the recording as this image's."""
        self.files[relative] = hash_file(self._root / relative)
        return relative

    def close(self) -> tuple[str, ...]:
        """Close every file; returns the tensors' files, relative to the recording."""
        for stem in list(self._open):
            self._close(stem)
        return tuple(sorted(path for path in self.files if path.endswith(".safetensors")))

    def _close(self, stem: str) -> None:
        writer = self._open.pop(stem)
        self.files[writer.path.relative_to(self._root).as_posix()] = writer.close()


def _place(name: str, opened: dict[str, Any]) -> tuple[str, list[str]]:
    """The stem of the file that a tensor goes to, and which of the open files will get nothing more."""
    match = _PLACE.fullmatch(name)
    if match is None:
        return "photo", [stem for stem in opened if stem != "photo"]
    tile, step, part = f"tile{match[1]}", match[2], match[3]
    kind = next((kind for pattern, kind in _KINDS if pattern.match(part)), None)
    if part == "motion_bias":
        kind = "motion"
    where = tile if step is None else f"{tile}.step{step}"
    own_tile = [stem for stem in opened if stem.split(".")[0] == tile]
    done = [stem for stem in opened if stem not in own_tile and stem != "photo"]
    if step is not None:
        done += [stem for stem in own_tile if ".step" in stem and not stem.startswith(f"{where}.")]
    return (tile if kind is None else f"{where}.{kind}"), done


class RecordingWriter:
    """A recording being written; use :func:`write_recording`.

    Attributes:
        folder: where files go.
    """

    def __init__(self, destination: Path, work: Path, *, overwrite: bool) -> None:
        self.folder = work / "recording"
        self._overwrite = overwrite
        self._destination = destination
        self._work = work
        self._entries: dict[str, _Finished] = {}

    def take_over(self, keys: dict[str, str]) -> tuple[str, ...]:
        """Find the images that an earlier process finished, and remove everything else that it left.

        Args:
            keys: :func:`condition_key` of every image that is wanted, by name.

        Returns:
            The names that need not be computed again.
        """
        with output_errors(self._destination):
            for file in sorted((self._work / "finished").glob("*.json")):
                finished = _read_finished(file, self.folder)
                if finished is not None and keys.get(file.stem) == finished.key:
                    self._entries[file.stem] = finished
                else:
                    file.unlink()
            kept = {self.folder / path for finished in self._entries.values() for path in finished.files}
            for path in sorted(self.folder.rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
                elif path not in kept:
                    path.unlink()
        return tuple(self._entries)

    @contextlib.contextmanager
    def image(self, name: str, dtype: StorageType) -> Iterator[ImageWriter]:
        """Write one image's files; what an interrupted block left is removed when the image is written again.

        Raises:
            OutputError: a place cannot be written.
            ResourceError: the disk is full.
        """
        with output_errors(self._destination):
            shutil.rmtree(self.folder / "tensors" / name, ignore_errors=True)
            yield ImageWriter(self.folder, name, dtype)

    def finish(self, name: str, key: str, entry: ImageEntry, files: dict[str, FileEntry]) -> None:
        """Mark an image as finished: it survives the process from here on."""
        done = _Finished(key=key, entry=entry, files=files)
        with output_errors(self._destination):
            for path in files:
                sync_file(self.folder / path)
        write_file(self._work / "finished" / f"{name}.json", msgspec.json.encode(done, order="sorted"))
        self._entries[name] = done

    def commit(self, meta: RecordingMeta) -> None:
        """Write ``recording.json`` with every finished image and move the recording into place.

        Args:
            meta: everything but ``images`` and ``files``, which are filled in.
        """
        images = {name: self._entries[name].entry for name in sorted(self._entries)}
        files = {path: entry for name in images for path, entry in sorted(self._entries[name].files.items())}
        complete = msgspec.structs.replace(meta, images=images, files=files)
        with output_errors(self._destination):
            (self.folder / META_NAME).write_bytes(encode_manifest(complete))
        StagedFolder(self._destination, self.folder, overwrite=self._overwrite, is_ours=RECORDINGS.is_one).publish()
        shutil.rmtree(self._work, ignore_errors=True)


@contextlib.contextmanager
def write_recording(destination: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[RecordingWriter]:
    """Open a :class:`RecordingWriter`. On leaving without a commit the finished images stay, hidden, for the next call.

    Raises:
        OutputError: the destination exists (and ``overwrite`` is false), is not a recording, cannot be written, or
            another process is writing it.
        ResourceError: the disk is full.
    """
    target = Path(destination).absolute()
    work = target.with_name(f".{target.name}.unfinished")
    remove_emptied(work, "recording")
    check_destination(destination, is_ours=RECORDINGS.is_one, kind="a recording", overwrite=overwrite)
    with contextlib.ExitStack() as held:
        try:
            with output_errors(target):
                for part in ("recording", "finished"):
                    (work / part).mkdir(parents=True, exist_ok=True)
                held.enter_context(only_one(work / "lock"))
        except BusyError as busy:
            fix = f"wait for it, or end it{busy.hint}"
            raise OutputError(target, "is being recorded by another process", fix=fix) from None
        try:
            yield RecordingWriter(target, work, overwrite=overwrite)
        finally:
            if work.is_dir() and not any((work / "finished").iterdir()):
                shutil.rmtree(work, ignore_errors=True)


def _read_finished(file: Path, folder: Path) -> _Finished | None:
    """A finished image, if all of its files are what they were."""
    try:
        finished = msgspec.json.decode(read_file(file), type=_Finished)
        intact = all((folder / path).is_file() and hash_file(folder / path) == e for path, e in finished.files.items())
    except msgspec.MsgspecError:
        return None
    return finished if intact else None
