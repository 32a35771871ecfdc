"""Folders that appear whole or not at all: written under a hidden name beside their destination, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import OutputError


class StagedFolder:
    """A folder being written in a hidden folder beside its destination.

    ``folder`` is where files go; :meth:`publish` moves it into place.
    """

    def __init__(self, destination: Path, folder: Path) -> None:
        self.destination = destination
        self.folder = folder
        self.committed = False

    def publish(self) -> None:
        """Flush every file to the disk and move the folder into place, replacing an older one in one rename each."""
        for file in self.folder.rglob("*"):
            if file.is_file():
                _sync(file)
        retired = None
        if self.destination.exists():
            retired = Path(tempfile.mkdtemp(dir=self.destination.parent, prefix=f".{self.destination.name}.old-"))
            self.destination.rename(retired / "replaced")
        self.folder.rename(self.destination)
        self.committed = True
        if retired is not None:
            shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def stage_folder(destination: Path) -> Iterator[Path]:
    """The hidden folder ``.NAME.partial-PID-…`` beside ``destination``; removed on leaving, if it is still there.

    A process killed outright leaves it behind; the next call for the same destination removes it.

    Raises:
        OutputError: the parent cannot be written.
    """
    prefix = f".{destination.name}.partial-"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(destination.parent, prefix)
        folder = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f"{prefix}{os.getpid()}-"))
    except OSError as error:
        raise OutputError(
            destination.parent, f"cannot be written ({error.strerror})", fix="choose another folder"
        ) from None
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove files and folders named ``{prefix}{pid}-…`` whose process is gone."""
    for path in parent.glob(f"{prefix}*"):
        pid = path.name[len(prefix) :].split("-")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
