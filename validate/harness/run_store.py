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
from livemoments.store.claims import BusyError, only_one
from livemoments.store.errors import output_errors
from livemoments.store.folders import StagedFolder, stage_folder
from livemoments.store.journals import LineJournal
from livemoments.validate.harness.image_files import ImageFiles
from livemoments.validate.harness.image_worker import FinishedImage
from livemoments.validate.harness.key import key_difference
from livemoments.validate.quality.aggregate import save_features
from livemoments.validate.report_data import ImageResult

JOURNAL_NAME = "results.jsonl"
PICTURES, FEATURES = "images", "features"
ROLES = ("input", "output", "reference", "truth", "error")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_FINISHED = {"finished": True}


class RunStore:
    """Results of one run, kept as they finish.

    A line of the journal holds an image's result and the SHA-256 of its files: a mended image is done again, and the
    others are not. An image's pictures are in place before its line is written.

    Args:
        work: the folder.
        key: what the results depend on (:func:`livemoments.validate.harness.key.run_key`).
        images: the data set's; results of others are not read.
        pictures: whether a result counts only with its pictures there.
        fresh: begin anew, whatever is there.

    Attributes:
        done: finished results by name.

    Raises:
        UsageError: the folder holds an unfinished run with another key.
        OutputError: the folder cannot be written.
        ResourceError: the disk is full.
    """

    def __init__(
        self, work: Path, key: Mapping[str, Any], images: Sequence[ImageFiles], *, pictures: bool, fresh: bool = False
    ) -> None:
        self.work = work
        self.done: dict[str, ImageResult] = {}
        self._hashes = {image.name: image.sha256 for image in images}
        self._journal = LineJournal(work / JOURNAL_NAME)
        head = self._journal.head
        if not fresh and head is not None and head.get("key") == key:
            self._read(pictures)
        elif not fresh and head is not None:
            self._check_finished(head, key)
        if fresh or head is None or head.get("key") != key:
            self._journal.start({"key": dict(key)})
        self._sweep()

    def add(self, image: ImageFiles, finished: FinishedImage) -> ImageResult:
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
        line = {
            "name": image.name,
            "sha256": image.sha256,
            "features": bool(finished.features),
            "result": msgspec.to_builtins(msgspec.structs.replace(finished.result, files=files)),
        }
        self._journal.append(line)
        kept = msgspec.convert(line["result"], ImageResult)
        self.done[image.name] = kept
        return kept

    def finish(self) -> None:
        """Say that every image of the data set is done: another run may take the folder.

        Raises:
            OutputError: the folder cannot be written.
            ResourceError: the disk is full.
        """
        if not self._journal.lines or self._journal.lines[-1] != _FINISHED:
            self._journal.append(_FINISHED)

    def _read(self, pictures: bool) -> None:
        for number, line in enumerate(self._journal.lines):
            if line == _FINISHED:
                continue
            try:
                name, sha256, featured = line["name"], line["sha256"], line["features"]
                result = msgspec.convert(line["result"], ImageResult)
            except (KeyError, TypeError, msgspec.ValidationError):
                self._journal.keep(number)
                return
            has_features = not featured or features_file(self.work, name).is_file()
            if self._hashes.get(name) == sha256 and has_features and self._has_pictures(result, wanted=pictures):
                self.done[name] = result

    def _has_pictures(self, result: ImageResult, *, wanted: bool) -> bool:
        if not wanted or result.status == "failed":
            return True
        return bool(result.files) and all((self.work / name).is_file() for name in result.files.values())

    def _check_finished(self, head: Mapping[str, Any], key: Mapping[str, Any]) -> None:
        if not self._journal.lines or self._journal.lines[-1] == _FINISHED:
            return
        differs = ", ".join(key_difference(head.get("key", {}), key))
        count = len(self._journal.lines)
        raise UsageError(
            f"{self.work} holds {count} results of an unfinished run that differs in: {differs}",
            fix="go on with what it was begun with, choose another folder, or delete this one",
        )

    def _publish(self, name: str, pictures: Mapping[str, bytes]) -> dict[str, str]:
        folder = folder_name(name)
        target = self.work / PICTURES / folder
        with stage_folder(target) as staged:
            for role, data in pictures.items():
                (staged / f"{role}.jpg").write_bytes(data)
            StagedFolder(target, staged, overwrite=True).publish()
        return {role: f"{PICTURES}/{folder}/{role}.jpg" for role in ROLES if role in pictures}

    def _sweep(self) -> None:
        """Remove pictures that belong to no result: a killed process had not written its line yet."""
        folder = self.work / PICTURES
        kept = {folder_name(name) for name, result in self.done.items() if result.files}
        ours = {f"{role}.jpg" for role in ROLES}
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
    with contextlib.ExitStack() as held:
        try:
            with output_errors(work):
                work.mkdir(parents=True, exist_ok=True)
                held.enter_context(only_one(work / _LOCK))
        except BusyError as busy:
            fix = f"wait for it, or choose another folder{busy.hint}"
            raise UsageError(f"another run is working in {work}", fix=fix) from None
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
