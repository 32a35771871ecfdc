"""Folders that appear whole or not at all: written under a hidden name beside their destination, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from livemoments.errors import OutputError
from livemoments.store.claims import (
    BusyError,
    Claim,
    claim,
    hidden_prefix,
    left_behind,
    only_one,
    remove_left_behind,
)
from livemoments.store.errors import check_name, output_errors
from livemoments.store.files import PARTIAL, sync_file
from livemoments.store.names import check_utf8

RETIRED = ".old-"
"""Follows the hidden name of a folder's older content while it is replaced."""
_DELETED = ".deleted"


class StagedFolder:
    """A folder being written in a hidden folder beside its destination.

    ``folder`` is where files go; :meth:`publish` moves it into place.

    Args:
        destination: where the folder will be.
        folder: where the folder is until then, on the same file system.
        overwrite: whether what is at the destination by then may be replaced.
        is_ours: whether a folder is one of the kind, which ``overwrite`` may replace; ``None``: any is.
    """

    def __init__(
        self, destination: Path, folder: Path, *, overwrite: bool, is_ours: Callable[[Path], bool] | None = None
    ) -> None:
        self.destination = destination
        self.folder = folder
        self.overwrite = overwrite
        self.is_ours = is_ours
        self.committed = False

    def publish(self) -> None:
        """Flush every file to the disk and move the folder into place, replacing an older one in one rename each.

        Where the second rename fails or is interrupted, the older folder is put back. A process killed between the
        two leaves it hidden; :func:`restore_retired` puts it back on the next write.

        Raises:
            OutputError: the folder cannot be moved into place, or another one appeared there meanwhile.
            ResourceError: the disk is full.
        """
        with output_errors(self.destination):
            for file in self.folder.rglob("*"):
                if file.is_file():
                    sync_file(file)
            if self._may_replace():
                self._replace()
            elif not self._move():
                message = "appeared while this was being written; it was left as it is"
                fix = "choose another -o" + ("" if self.overwrite else ", or pass --overwrite")
                raise OutputError(self.destination, message, fix=fix)
            self.committed = True

    def _may_replace(self) -> bool:
        """Asked again: what is there now need not be what was there before the work."""
        there = self.overwrite and os.path.lexists(self.destination)
        return there and (self.is_ours is None or self.is_ours(self.destination))

    def _move(self) -> bool:
        """Into a place where nothing is, or an empty folder; the system itself refuses what has content."""
        with contextlib.suppress(OSError):
            self.destination.rmdir()
        try:
            self.folder.rename(self.destination)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) or os.path.lexists(self.destination):
                return False
            raise
        return True

    def _replace(self) -> None:
        own = claim(self.destination.parent, hidden_prefix(self.destination.name, RETIRED))
        try:
            own.path.mkdir()
            shutil.copymode(self.destination, self.folder)
            self.destination.rename(own.path / self.destination.name)
            try:
                self.folder.rename(self.destination)
            except BaseException:
                _put_back(own.path, self.destination)
                raise
            # Renamed first: a process killed while it deletes must leave nothing that would be put back.
            (own.path / self.destination.name).rename(own.path / _DELETED)
        finally:
            _tidy(own, self.destination)


@contextlib.contextmanager
def stage_folder(destination: Path) -> Iterator[Path]:
    """The hidden folder ``.NAME.partial-…`` beside ``destination``; removed on leaving, if it is still there.

    A process killed outright leaves it behind; the next call for the same destination removes it. Parents that were
    made for it and stayed empty are removed too.

    Raises:
        OutputError: the parent cannot be written.
        ResourceError: the disk is full.
    """
    made = [parent for parent in destination.parents if not os.path.lexists(parent)]
    own: Claim | None = None
    try:
        with output_errors(destination.parent):
            destination.parent.mkdir(parents=True, exist_ok=True)
            restore_retired(destination)
            prefix = hidden_prefix(destination.name, PARTIAL)
            remove_left_behind(destination.parent, prefix)
            own = claim(destination.parent, prefix)
            own.path.mkdir()
        yield own.path
    finally:
        if own is not None:
            own.remove()
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for parent in made:
                parent.rmdir()


def restore_retired(destination: Path) -> None:
    """Put back what a process that was killed while it replaced ``destination`` had moved away, and tidy up after it.

    Of several, the newest is put back; nothing is touched where ``destination`` is there.
    """
    retired = list(left_behind(destination.parent, hidden_prefix(destination.name, RETIRED)))
    by_age = sorted(retired, key=lambda one: one.path.stat().st_mtime_ns if one.path.exists() else 0, reverse=True)
    for one in by_age:
        _put_back(one.path, destination)
        _tidy(one, destination)


def remove_emptied(work: Path, part: str) -> None:
    """Remove a resumable folder whose content ``part`` was moved into place by a process that was killed right then.

    Args:
        work: the folder; its lock is the file ``lock`` in it.
        part: the folder in it that is published.
    """
    with contextlib.suppress(BusyError, OSError):
        if work.is_dir() and not (work / part).exists():
            with only_one(work / "lock"):
                if not (work / part).exists():
                    shutil.rmtree(work, ignore_errors=True)


def check_destination(
    destination: str | os.PathLike[str], *, is_ours: Callable[[Path], bool], kind: str, overwrite: bool
) -> Path:
    """Before long work: may a folder be written there?

    Args:
        destination: the place.
        is_ours: whether a folder is one of the kind, which ``overwrite`` may replace.
        kind: what the folder is, e.g. ``a bundle``.
        overwrite: replace an older one.

    Returns:
        The absolute place; what a killed process had moved away from there is back.

    Raises:
        OutputError: something else is there, or an older one and ``overwrite`` is false, or it cannot be looked
            at, or its name is no UTF-8.
    """
    target = Path(destination).absolute()
    check_utf8(destination, OutputError)
    with output_errors(destination):
        try:
            check_name(target)
            restore_retired(target)
            if not os.path.lexists(target):
                return target
            if target.is_dir() and not any(target.iterdir()):
                return target
            ours = is_ours(target)
        except ValueError as error:  # a NUL in the name
            raise OutputError(destination, f"cannot be written ({error})", fix="choose another folder") from None
    if not (ours and overwrite):
        fix = "pass --overwrite to replace it" if ours else "name a folder that does not exist yet"
        raise OutputError(destination, "exists already" + ("" if ours else f" and is not {kind}"), fix=fix)
    return target


def _tidy(retired: Claim, destination: Path) -> None:
    """Remove what is not needed any more; leave what could not be put back, and what belongs to a name that begins
    alike.
    """
    content = {path.name for path in retired.path.iterdir()} if retired.path.is_dir() else set()
    if content <= {_DELETED} or (destination.name in content and os.path.lexists(destination)):
        retired.remove()
    else:
        retired.leave()


def _put_back(retired: Path, destination: Path) -> None:
    """Undo a retirement; where that is impossible the older folder stays in its hidden place."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(destination) and (retired / destination.name).exists():
            (retired / destination.name).rename(destination)
        retired.rmdir()  # fails, as it should, while something is left in it
