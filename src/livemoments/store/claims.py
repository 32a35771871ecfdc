"""Hidden files and folders that belong to a living process.

Beside each lies a lock that the system lets go of when its process ends, however it ends: what is found with a free
lock was left behind. Process ids would not do, for containers that share a folder count them separately. Where a file
system has no locks (some network mounts), the lock files are mere marks, and what they guard counts as left behind
after a day.
"""

from __future__ import annotations

import contextlib
import errno
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
"""Age from which an entry counts as left behind that no lock speaks for: it has none (of an older version, or copied),
or its file system knows none."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_MAX_NAME_CHARS = 50
"""Of the destination's name in a hidden one: up to 200 bytes; file systems stop at 255."""


class BusyError(Exception):
    """Another process holds the lock.

    Attributes:
        hint: what to add to a fix where nobody can say whether that process lives; otherwise empty.
    """

    def __init__(self, hint: str = "") -> None:
        super().__init__(hint)
        self.hint = hint


class Claim:
    """A hidden name in a folder, and the lock beside it.

    Attributes:
        path: the name; whether there is a file or a folder of it is up to the holder.
    """

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path = path
        self._lock = lock

    def release(self) -> None:
        """Give the name up, lock and all."""
        with contextlib.suppress(OSError):
            _lock_file(self.path).unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()

    def leave(self) -> None:
        """Let go of it as a process that ends does: it can be found again."""
        if self._lock is not None:
            self._lock.release()
        else:  # what could say that it is free, if not its age?
            with contextlib.suppress(OSError):
                os.utime(_lock_file(self.path), (0, 0))

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
        lock_file = _lock_file(path)
        lock_file.open("xb").close()  # what filelock would make of an error: endless trying
        try:
            return Claim(path, _acquire(lock_file))
        except BusyError:  # somebody who tidies up had it for an instant
            continue
        except BaseException:
            lock_file.unlink(missing_ok=True)
            raise


def left_behind(folder: Path, prefix: str) -> Iterator[Claim]:
    """What processes that are gone left in a folder, each claimed by this one until it releases or removes it."""
    entries = {path for path in folder.glob(f"{glob.escape(prefix)}*") if not path.name.endswith(LOCK)}
    locks = {path.with_name(path.name.removesuffix(LOCK)) for path in folder.glob(f"{glob.escape(prefix)}*{LOCK}")}
    for path in sorted(entries | locks):
        is_old = _is_old(_lock_file(path) if path in locks else path)
        if path not in locks and not is_old:
            continue
        with contextlib.suppress(BusyError, OSError):
            lock = _acquire(_lock_file(path))
            if lock is not None or is_old:
                yield Claim(path, lock)


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
    try:
        lock_file.open("xb").close()
        is_new = True
    except FileExistsError:
        is_new = False
    lock = _acquire(lock_file)
    if lock is None:
        if not is_new and not _is_old(lock_file):
            raise BusyError(f"; if none runs, delete {lock_file}: this file system has no locks that would tell")
        os.utime(lock_file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock_file.unlink(missing_ok=True)
        if lock is not None:
            lock.release()


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}{LOCK}")


def _acquire(lock_file: Path) -> FileLock | None:
    """The lock, or ``None`` where the file system has none.

    Raises:
        BusyError: somebody else holds it.
        OSError: the lock file cannot be opened.
    """
    # filelock's own way without locks goes by host names and process ids, which containers may share
    lock = FileLock(lock_file, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return lock


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _STALE_S
    except OSError:
        return False
