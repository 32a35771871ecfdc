"""What the operating system refuses while something is written, as one error that names the place."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import OutputError, ResourceError

_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL_FIX = "free some space, or choose another disk"
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR)


@contextlib.contextmanager
def output_errors(place: str | os.PathLike[str], *, fix: str = "choose another folder") -> Iterator[None]:
    """Within the block, an ``OSError`` becomes an error that names the place.

    Raises:
        ResourceError: the disk is full, or a quota is used up.
        OutputError: anything else.
    """
    try:
        yield
    except OSError as error:
        raise output_error(place, error, fix=fix) from None


def check_name(place: Path) -> None:
    """Look a place up, so that a name which the system refuses (too long) is known before the work.

    Raises:
        OSError: the system refuses it.
    """
    with contextlib.suppress(FileNotFoundError):
        place.lstat()


def output_error(
    place: str | os.PathLike[str], error: OSError, *, fix: str = "choose another folder"
) -> OutputError | ResourceError:
    """The error for what the operating system said about writing there."""
    if is_full(error):
        return disk_full(place)
    reason = "a file is in the way" if error.errno in _IN_THE_WAY else (error.strerror or str(error)).lower()
    return OutputError(place, f"cannot be written ({reason})", fix=fix)


def is_full(error: OSError) -> bool:
    """Whether the disk is full, or a quota used up."""
    return error.errno in _FULL


def disk_full(place: str | os.PathLike[str]) -> ResourceError:
    """The one error for a full disk."""
    return ResourceError(f"the disk of {os.fspath(place)} is full", fix=DISK_FULL_FIX)
