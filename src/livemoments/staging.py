"""Folders that appear whole or not at all: written under a hidden name beside their destination, then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import OutputError, ResourceError

PARTIAL = ".partial-"
"""Follows the hidden name of what is being written; then the writer's process id and a dash."""
_RETIRED = ".old-"
_REPLACED = "replaced"


class StagedFolder:
    """A folder being written in a hidden folder beside its destination.

    ``folder`` is where files go; :meth:`publish` moves it into place.
    """

    def __init__(self, destination: Path, folder: Path) -> None:
        self.destination = destination
        self.folder = folder
        self.committed = False

    def publish(self) -> None:
        """Flush every file to the disk and move the folder into place, replacing an older one in one rename each.

        Where the second rename fails or is interrupted, the older folder is put back. A process killed between the
        two leaves it hidden; :func:`restore_retired` puts it back on the next write.

        Raises:
            OutputError: the folder cannot be moved into place.
            ResourceError: the disk is full.
        """
        with output_errors(self.destination):
            for file in self.folder.rglob("*"):
                if file.is_file():
                    sync_file(file)
            retired = None
            try:
                if self.destination.exists():
                    retired = _hidden_folder(self.destination, _RETIRED)
                    self.destination.rename(retired / _REPLACED)
                self.folder.rename(self.destination)
            except BaseException:
                if retired is not None:
                    _put_back(retired, self.destination)
                raise
            self.committed = True
            if retired is not None:
                # Renamed first: a process killed while it deletes must leave nothing that would be put back.
                (retired / _REPLACED).rename(retired / "deleted")
                shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def stage_folder(destination: Path) -> Iterator[Path]:
    """The hidden folder ``.NAME.partial-PID-…`` beside ``destination``; removed on leaving, if it is still there.

    A process killed outright leaves it behind; the next call for the same destination removes it. Parents that were
    made for it and stayed empty are removed too.

    Raises:
        OutputError: the parent cannot be written.
        ResourceError: the disk is full.
    """
    made = [parent for parent in destination.parents if not os.path.lexists(parent)]
    folder = None
    try:
        with output_errors(destination.parent):
            destination.parent.mkdir(parents=True, exist_ok=True)
            restore_retired(destination)
            remove_leftovers(destination.parent, f".{destination.name}{PARTIAL}")
            folder = _hidden_folder(destination, PARTIAL)
            folder.chmod(0o755)
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for parent in made:
                parent.rmdir()


def restore_retired(destination: Path) -> None:
    """Put back what a process that was killed while it replaced ``destination`` had moved away, and tidy up after it.

    Of several, the newest is put back; nothing is touched where ``destination`` is there.
    """
    prefix = f".{destination.name}{_RETIRED}"
    dead = [path for path in _matching(destination.parent, prefix) if _is_leftover(path, prefix)]
    for path in sorted(dead, key=lambda found: found.stat().st_mtime_ns, reverse=True):
        _put_back(path, destination)
    if os.path.lexists(destination):
        remove_leftovers(destination.parent, prefix)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove files and folders named ``{prefix}{pid}-…`` whose process is gone."""
    for path in _matching(parent, prefix):
        if _is_leftover(path, prefix):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a hidden name beside its place, then rename it.

    What a process that was killed while it wrote left behind is removed.

    Raises:
        OutputError: it cannot be written.
    """
    partial: Path | None = None
    prefix = f".{path.name}{PARTIAL}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, prefix)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{prefix}{os.getpid()}-", delete=False) as stream:
            partial = Path(stream.name)
            stream.write(content)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror})", fix="choose another folder") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _matching(parent: Path, prefix: str) -> list[Path]:
    return list(parent.glob(f"{glob.escape(prefix)}*"))


def _is_leftover(path: Path, prefix: str) -> bool:
    pid = path.name[len(prefix) :].split("-")[0]
    return pid.isdigit() and not _is_running(int(pid))


def _hidden_folder(destination: Path, mark: str) -> Path:
    return Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}{mark}{os.getpid()}-"))


def _put_back(retired: Path, destination: Path) -> None:
    """Undo a retirement; where that is impossible the older folder stays in its hidden place."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(destination) and (retired / _REPLACED).exists():
            (retired / _REPLACED).rename(destination)
        retired.rmdir()  # fails, as it should, while something is left in it


@contextlib.contextmanager
def output_errors(place: Path) -> Iterator[None]:
    """Within the block, what the operating system refuses is an error that names the place.

    Raises:
        ResourceError: the disk is full.
        OutputError: anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"the disk of {place} is full", fix="free some space, or choose another disk") from None
        in_the_way = error.errno in (errno.EEXIST, errno.ENOTDIR)
        reason = "a file is in the way" if in_the_way else error.strerror or str(error)
        raise OutputError(place, f"cannot be written ({reason})", fix="choose another folder") from None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync_file(file: Path) -> None:
    """Wait until a file's contents are on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
