"""What processes that write leave beside a destination: dead ones' leftovers, and living ones' work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock


def left_behind(path: Path, *, is_folder: bool = True) -> Path:
    """A hidden entry whose process was killed: its lock is there, and free."""
    if is_folder:
        path.mkdir()
        (path / "half").touch()
    else:
        path.write_bytes(b"half")
    path.with_name(f"{path.name}.lock").touch()
    return path


@contextlib.contextmanager
def being_written(path: Path, *, is_folder: bool = True) -> Iterator[Path]:
    """A hidden entry whose process is alive."""
    left_behind(path, is_folder=is_folder)
    with FileLock(f"{path}.lock"):
        yield path
