"""Files that appear complete or not at all; and a user's files, read without waiting for one that never ends."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from livemoments.errors import OutputError
from livemoments.store.claims import claim, hidden_prefix, remove_left_behind
from livemoments.store.errors import check_name, output_errors

PARTIAL = ".partial-"
"""Follows the hidden name of what is being written."""
_FIX = "choose another output"
_NO_FILE = "a pipe or a device"


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file that a user or another file named.

    Raises:
        OSError: it cannot be read; also what has no end or may never begin, a device or a pipe.
    """
    mode = os.stat(path).st_mode  # noqa: PTH116 - any path-like
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder has the system's own words
        raise OSError(errno.EINVAL, _NO_FILE, os.fspath(path))
    return Path(path).read_bytes()


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a hidden name in its folder, flush it to the disk, then rename it.

    Missing folders are made. A file that is replaced keeps its mode, a new one has what the umask leaves. On any error
    or interrupt the hidden file is removed and an older file of that name stays as it was. A process killed outright
    leaves ``.NAME.partial-…``, which the next write to the same name removes.

    Raises:
        OutputError: the place cannot be written.
        ResourceError: the disk is full.
    """
    target = _resolve(path)
    with output_errors(path, fix=_FIX):
        _check_in_the_way(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = hidden_prefix(target.name, PARTIAL)
        remove_left_behind(target.parent, prefix)
        own = claim(target.parent, prefix)
        try:
            with own.path.open("xb") as stream:
                with contextlib.suppress(FileNotFoundError):  # first: nobody else may read it meanwhile either
                    shutil.copymode(target, own.path)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            own.path.replace(target)
        finally:
            own.remove()


def check_file(path: str | os.PathLike[str]) -> None:
    """Before long work: try a hidden file there, or in the nearest folder that exists.

    Raises:
        OutputError: a file cannot be written at this place.
        ResourceError: the disk is full.
    """
    target = _resolve(path)
    with output_errors(path, fix=_FIX):
        _check_in_the_way(target)
        folder = next(parent for parent in target.parents if os.path.lexists(parent))
        claim(folder, hidden_prefix(target.name, PARTIAL)).remove()


def sync_file(file: Path) -> None:
    """Wait until a file's contents are on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _resolve(path: str | os.PathLike[str]) -> Path:
    """The file behind a symbolic link, so that the link stays and the rename does not cross file systems."""
    return Path(os.path.realpath(path))


def _check_in_the_way(target: Path) -> None:
    """What a rename would not find, or too late: a folder or a read-only file of that name, a name that is too long."""
    check_name(target)
    if target.is_dir():
        raise OutputError(target, "is a folder", fix="add a file name")
    if target.exists() and not target.is_file():
        raise OutputError(target, f"is {_NO_FILE}", fix=_FIX)
    if target.exists() and not os.access(target, os.W_OK):
        raise OutputError(target, "exists and is read-only", fix=_FIX)
