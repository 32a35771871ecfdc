"""The folder of a run: finished results in a journal, pictures beside it. Killed at any moment, it can go on."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from livemoments.errors import UsageError
from livemoments.store.errors import output_errors
from livemoments.store.folders import StagedFolder, stage_folder
from livemoments.store.journals import LineJournal, work_alone
from livemoments.validate.harness.image_inputs import ImageInputs
from livemoments.validate.harness.image_worker import FinishedImage
from livemoments.validate.harness.previews import RESULT, ROLES
from livemoments.validate.quality.aggregate import save_features
from livemoments.validate.report_data import ImageResult

JOURNAL_NAME = "results.jsonl"
PICTURES, FEATURES = "images", "features"
_FILES = {role: f"{role}.jpg" for role in ROLES} | {RESULT: f"{RESULT}.png"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_FINISHED = {"finished": True}


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A finished image; or the end, if every image of the data set is done."""

    name: str = ""
    sha256: str = ""
    features: bool = False
    result: ImageResult = ImageResult(name="", status="failed")
    finished: bool = False


class RunStore:
    """Results of one run, kept as they finish.

    A line of the journal holds an image's result and the SHA-256 of its files: a mended image is done again, and the
    others are not. An image's pictures are in place before its line is written.

    Args:
        work: the folder.
        key: what the results depend on (:func:`livemoments.validate.harness.run_key.run_key`).
        images: the data set's; results of others are not read.
        pictures: whether a result counts only with its pictures there.
        results: whether it counts only with the restored photo there.
        fresh: begin anew, whatever is there.

    Attributes:
        done: finished results by name.

    Raises:
        UsageError: the folder holds an unfinished run with another key.
        OutputError: the folder cannot be written.
        ResourceError: the disk is full.
    """

    def __init__(
        self,
        work: Path,
        key: Mapping[str, Any],
        images: Sequence[ImageInputs],
        *,
        pictures: bool,
        results: bool = False,
        fresh: bool = False,
    ) -> None:
        self.work = work
        self.done: dict[str, ImageResult] = {}
        self._hashes = {image.name: image.sha256 for image in images}
        self._journal = LineJournal(work / JOURNAL_NAME)
        if fresh:
            self._journal.start({"key": dict(key)})
        else:
            self._check_key(key)
        for line in self._journal.resume({"key": dict(key)}, _Line):
            if self._is_there(line, pictures=pictures, results=results):
                self.done[line.name] = line.result
        self._sweep()

    def add(self, image: ImageInputs, finished: FinishedImage) -> ImageResult:
        """Keep a finished image.

        Returns:
            The result with the names of its pictures' files.

        Raises:
            OutputError: the folder cannot be written.
            ResourceError: the disk is full.
        """
        with output_errors(self.work):
            files = self._publish(image.name, finished.pictures) if finished.pictures else {}
            place = features_file(self.work, image.name)
            place.unlink(missing_ok=True)  # of a run with other metrics
            if finished.features:
                save_features(place, finished.features)
        result = msgspec.structs.replace(finished.result, files=files)
        self._journal.append(_Line(image.name, image.sha256, bool(finished.features), result))
        self.done[image.name] = result
        return result

    def finish(self) -> None:
        """Say that every image of the data set is done: another run may take the folder.

        Raises:
            OutputError: the folder cannot be written.
            ResourceError: the disk is full.
        """
        if not self._journal.lines or self._journal.lines[-1] != _FINISHED:
            self._journal.append(_FINISHED)

    def _is_there(self, line: _Line, *, pictures: bool, results: bool) -> bool:
        """Whether a line is an image's as it is now, with everything that belongs to its result."""
        if line.finished or self._hashes.get(line.name) != line.sha256:
            return False
        if line.features and not features_file(self.work, line.name).is_file():
            return False
        files = line.result.files
        if line.result.status != "ok" or not (pictures or results):
            return True
        has_all = all((self.work / file).is_file() for file in files.values())
        return has_all and (not pictures or bool(files.keys() & ROLES.keys())) and (not results or RESULT in files)

    def _check_key(self, key: Mapping[str, Any]) -> None:
        """Refuse to replace an unfinished run of another key."""
        head, lines = self._journal.head, self._journal.lines
        if head is None or head.get("key") == key or not lines or lines[-1] == _FINISHED:
            return
        before = head.get("key", {})
        differs = ", ".join(sorted(name for name in {*before, *key} if before.get(name) != key.get(name)))
        raise UsageError(
            f"{self.work} holds {len(lines)} results of an unfinished run that differs in: {differs}",
            fix="go on with what it was begun with, choose another folder, or delete this one",
        )

    def _publish(self, name: str, pictures: Mapping[str, bytes]) -> dict[str, str]:
        folder = folder_name(name)
        target = self.work / PICTURES / folder
        with stage_folder(target) as staged:
            for role, data in pictures.items():
                (staged / _FILES[role]).write_bytes(data)
            StagedFolder(target, staged, overwrite=True).publish()
        return {role: f"{PICTURES}/{folder}/{file}" for role, file in _FILES.items() if role in pictures}

    def _sweep(self) -> None:
        """Remove pictures that belong to no result: a killed process had not written its line yet."""
        folder = self.work / PICTURES
        kept = {folder_name(name) for name, result in self.done.items() if result.files}
        ours = set(_FILES.values())
        for path in folder.iterdir() if folder.is_dir() else ():
            hidden = path.name.startswith(".")
            if path.is_dir() and path.name not in kept and (hidden or {file.name for file in path.iterdir()} <= ours):
                shutil.rmtree(path, ignore_errors=True)
        for path in (self.work / FEATURES).glob(".*"):
            path.unlink(missing_ok=True)


_LOCK = ".lock"


def has_results(work: Path) -> bool:
    """Whether a folder holds finished images of a run, which another can go on from."""
    return (work / JOURNAL_NAME).is_file() and len(LineJournal(work / JOURNAL_NAME).lines) > 0


@contextlib.contextmanager
def only_run_in(work: Path) -> Iterator[None]:
    """Refuse a second run in one folder, while the first is alive.

    Raises:
        UsageError: another process is working there.
        OutputError: the folder cannot be made.
    """

    def busy(hint: str) -> UsageError:
        return UsageError(f"another run is working in {work}", fix=f"wait for it, or choose another folder{hint}")

    with work_alone(work, _LOCK, place=work, busy=busy):
        yield


def features_file(work: Path, name: str) -> Path:
    """Where an image's features for the metrics of the whole set are; there is none if no such metric was asked for."""
    return work / FEATURES / f"{folder_name(name)}.npz"


def folder_name(name: str) -> str:
    """An image's folder: its name where that is safe in a path and in a link, else a readable part and a hash."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
    return f"{plain or 'image'}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
