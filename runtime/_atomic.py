"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import OutputError
from livemoments.staging import PARTIAL, remove_leftovers

_FIX = "choose another output"
_MAX_NAME_CHARS = 50  # of the output's name in the temporary one: up to 200 bytes; file systems stop at 255


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name in its folder, flush it to the disk, then rename it.

    On any error or interrupt the temporary file is removed and an older file of that name stays as it was. A process
    killed outright leaves a hidden ``.NAME.partial-PID-…``, which the next write to the same name removes.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    target = _resolve(path)
    with _errors(path):
        _check_in_the_way(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target.parent, target.name)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Try a temporary file there, or in the nearest folder that exists: the missing ones are made when it is written.

    Raises:
        OutputError: a file cannot be written at this place.
    """
    target = _resolve(path)
    with _errors(path):
        _check_in_the_way(target)
        folder = next(parent for parent in target.parents if os.path.lexists(parent))
        temporary = _temporary(folder, target.name)
        try:
            temporary.open("xb").close()
        finally:
            temporary.unlink(missing_ok=True)


def _resolve(path: str | os.PathLike[str]) -> Path:
    """The file behind a symbolic link, so that the link stays and the rename does not cross file systems."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror or error})", fix=_FIX) from None


def _check_in_the_way(target: Path) -> None:
    """What a rename would not find: a folder, or a read-only file of that name."""
    if target.is_dir():
        raise OutputError(target, "is a folder", fix="add a file name")
    if target.exists() and not os.access(target, os.W_OK):
        raise OutputError(target, "exists and is read-only", fix=_FIX)


def _temporary(folder: Path, name: str) -> Path:
    """A free name; what killed writers of ``name`` left in the folder is removed."""
    prefix = f".{name[:_MAX_NAME_CHARS]}{PARTIAL}"
    remove_leftovers(folder, prefix)
    return folder / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
