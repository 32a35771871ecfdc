"""A build that can be killed: a hidden folder beside the set, with finished images and a line per finished pair."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from livemoments.bundle import hash_file
from livemoments.errors import OutputError
from livemoments.store.errors import output_errors
from livemoments.store.files import check_file
from livemoments.store.folders import StagedFolder, check_destination, remove_emptied
from livemoments.store.journals import LineJournal, work_alone
from livemoments.validate.synlive.manifest import MANIFEST_NAME, Pair, Skip, SynliveManifest, is_set

_JOURNAL = "journal.jsonl"
_SET = "set"


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A pair or a skip."""

    pair: Pair | None = None
    skip: Skip | None = None


class Build:
    """A set being built; what an earlier build of the same key finished is there already.

    Attributes:
        folder: where images go.
    """

    def __init__(self, target: Path, partial: Path, key: str, *, overwrite: bool) -> None:
        self.folder = partial / _SET
        self._target, self._partial, self._overwrite = target, partial, overwrite
        self._journal = LineJournal(partial / _JOURNAL)
        lines = self._journal.resume({"key": key}, _Line)
        entries = [entry for line in lines if (entry := line.pair or line.skip) is not None]
        self._done = {(entry.source, entry.start): entry for entry in entries}
        with output_errors(target):
            if not entries:
                shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def is_empty(self) -> bool:
        """Nothing is finished yet."""
        return not self._done

    def finished(self, source: str, start: int) -> Pair | Skip | None:
        """What an earlier build did with this pair; a pair only if its files are as they were."""
        entry = self._done.get((source, start))
        if isinstance(entry, Pair):
            for part, file in entry.files.items():
                path = self.folder / part / f"{entry.name}.png"
                if not path.is_file() or hash_file(path) != file:
                    return None
        return entry

    def add(self, entry: Pair | Skip) -> None:
        """Write down that a pair is finished.

        Raises:
            OutputError: the journal cannot be written.
            ResourceError: the disk is full.
        """
        self._done[entry.source, entry.start] = entry
        self._journal.append(_Line(pair=entry) if isinstance(entry, Pair) else _Line(skip=entry))

    def publish(self, manifest: SynliveManifest) -> None:
        """Leave only what the manifest lists, write it last, move the set into place.

        Raises:
            OutputError: that cannot be done.
            ResourceError: the disk is full.
        """
        known = {self.folder / part / f"{pair.name}.png" for pair in manifest.pairs for part in pair.files}
        with output_errors(self._target):
            for path in self.folder.rglob("*"):
                if path.is_file() and path not in known:
                    path.unlink()
            (self.folder / MANIFEST_NAME).write_bytes(manifest.encode())
        StagedFolder(self._target, self.folder, overwrite=self._overwrite, is_ours=is_set).publish()
        shutil.rmtree(self._partial, ignore_errors=True)


def check_place(destination: Path, *, overwrite: bool) -> Path:
    """The absolute place of a new set.

    Raises:
        OutputError: it exists, and is not a set, or may not be replaced; or it cannot be written.
    """
    remove_emptied(_unfinished(destination.absolute()), _SET)
    target = check_destination(destination, is_ours=is_set, kind="a set", overwrite=overwrite)
    if not os.path.lexists(target):
        check_file(target)
    return target


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


@contextlib.contextmanager
def open_build(target: Path, key: str, *, overwrite: bool) -> Iterator[Build]:
    """The hidden folder ``.NAME.unfinished`` beside the set; it stays until the set is published.

    Args:
        target: absolute.
        key: of everything that shapes the pairs; what a build with another key left behind is removed.
        overwrite: whether a set that is there by then may be replaced.

    Raises:
        OutputError: the place cannot be written, or another build writes there.
    """
    partial = _unfinished(target)

    def busy(hint: str) -> OutputError:
        fix = f"wait for it, or choose another -o{hint}"
        return OutputError(partial, "another build is writing there", fix=fix)

    with work_alone(partial, "lock", place=target, busy=busy):
        build = Build(target, partial, key, overwrite=overwrite)
        try:
            yield build
        finally:
            if build.is_empty:
                shutil.rmtree(partial, ignore_errors=True)
