"""Hidden files and folders that belong to a living process.

Beside each lies a lock that the system lets go of when its process ends, however it ends: what is found with a free
lock was left behind. Process ids would not do, for containers that share a folder count them separately. Where a file
system has no locks, filelock makes do with marker files, and what they guard counts as left behind after a day.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
_STALE_S = 24 * 3600.0
"""Age from which an entry without a lock beside it (of an older version, or copied) counts as left behind."""
_MAX_NAME_CHARS = 50
"""Of the destination's name in a hidden one: up to 200 bytes; file systems stop at 255."""


class BusyError(Exception):
    """Another process holds the lock."""


class Claim:
    """A hidden name in a folder, and the lock beside it.

    Attributes:
        path: the name; whether there is a file or a folder of it is up to the holder.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    def release(self) -> None:
        """Give the name up, lock and all."""
        with contextlib.suppress(OSError):
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def leave(self) -> None:
        """Let go of it as a process that ends does: it can be found again."""
        self._lock.release()

    def remove(self) -> None:
        """Delete what is there under the name, and give it up."""
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        self.release()


def hidden_prefix(name: str, mark: str) -> str:
    """How the hidden names that belong to ``name`` begin, e.g. ``.bundle.partial-``; long names are cut."""
    return f".{name[:_MAX_NAME_CHARS]}{mark}"


def claim(folder: Path, prefix: str) -> Claim:
    """A new hidden name in a folder, this process' own until it is released or the process ends.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        path = folder / f"{prefix}{secrets.token_hex(4)}"
        if os.path.lexists(path):
            continue
        Path(f"{path}{LOCK}").open("xb").close()  # what filelock would make of an error: endless trying
        with contextlib.suppress(BusyError):  # somebody who tidies up had it for an instant
            return Claim(path, _acquire(f"{path}{LOCK}"))


def left_behind(folder: Path, prefix: str) -> Iterator[Claim]:
    """What processes that are gone left in a folder, each claimed by this one until it releases or removes it."""
    entries = {path for path in folder.glob(f"{glob.escape(prefix)}*") if not path.name.endswith(LOCK)}
    locks = {path.with_name(path.name.removesuffix(LOCK)) for path in folder.glob(f"{glob.escape(prefix)}*{LOCK}")}
    for path in sorted(entries | locks):
        if path not in locks and not _is_old(path):
            continue
        with contextlib.suppress(BusyError, OSError):
            yield Claim(path, _acquire(f"{path}{LOCK}"))


def remove_left_behind(folder: Path, prefix: str) -> None:
    """Delete what processes that are gone left in a folder."""
    for found in left_behind(folder, prefix):
        found.remove()


@contextlib.contextmanager
def only_one(lock_file: Path) -> Iterator[None]:
    """Keep others out while the block runs; the lock file is gone afterwards.

    Raises:
        BusyError: another process, or another thread, is in such a block.
        OSError: the lock file cannot be made.
    """
    lock_file.open("ab").close()
    lock = _acquire(str(lock_file))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock_file.unlink(missing_ok=True)
        lock.release()


def _acquire(lock_file: str) -> FileLock:
    lock = FileLock(lock_file, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError from None
    return lock


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _STALE_S
    except OSError:
        return False
