"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from livemoments.bundle import remove_leftovers
from livemoments.errors import OutputError

_FIX = "choose another output"
_MAX_NAME_CHARS = 80  # of the output's name in the temporary one: file systems stop at 255 bytes


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file under a temporary name in its folder, flush it to the disk, then rename it.

    On any error or interrupt the temporary file is removed and an older file of that name stays as it was. A process
    killed outright leaves a hidden ``.NAME.partial-PID-…``, which the next write to the same name removes.

    Raises:
        OutputError: the place cannot be written, or the disk is full.
    """
    target = _resolve(path)
    with _errors(path):
        temporary = _temporary(target)
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
    """Make the folder, and try a temporary file there.

    Raises:
        OutputError: a file cannot be written at this place.
    """
    target = _resolve(path)
    with _errors(path):
        temporary = _temporary(target)
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


def _temporary(target: Path) -> Path:
    """A free name beside the target; checks what a rename would not: a folder or a read-only file in the way."""
    if target.is_dir():
        raise OutputError(target, "is a folder", fix="add a file name")
    if target.exists() and not os.access(target, os.W_OK):
        raise OutputError(target, "exists and is read-only", fix=_FIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    # remove_leftovers takes a glob pattern, so the pattern's characters are replaced
    prefix = f".{re.sub(r'[][*?]', '_', target.name)[:_MAX_NAME_CHARS]}.partial-"
    remove_leftovers(target.parent, prefix)
    return target.parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
