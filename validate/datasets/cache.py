"""Images that were checked already, so that a run that goes on does not decode them again."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import msgspec

from livemoments.manifest import Digest
from livemoments.runtime.photo_index import CheckedFile
from livemoments.store.journals import LineJournal
from livemoments.types import Size

FILE_NAME = "checked-images.jsonl"
_HEAD = {"schema": "livemoments/checked-images/1"}


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A checked file: path, size in bytes and time of change in ns as the key, its hash, and ``WxH``."""

    key: str
    sha256: Digest
    size: Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d{0,6}x[1-9]\d{0,6}$")]


class FileCache:
    """Checked files, a line of a journal each, appended as they are found.

    Args:
        folder: where the file is kept; ``None`` keeps nothing.

    Raises:
        OutputError: the folder cannot be written.
        ResourceError: the disk is full.
    """

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        self._journal = None if folder is None else LineJournal(folder / FILE_NAME, durable=False)
        rows = [] if self._journal is None else self._journal.resume(_HEAD, _Row)
        self._known = {row.key: CheckedFile(row.sha256, Size.parse(row.size)) for row in rows}

    def get(self, path: Path) -> CheckedFile | None:
        """What was found in this file, if it was not changed since."""
        with self._lock:
            return self._known.get(_key(path))

    def put(self, path: Path, checked: CheckedFile) -> None:
        """Keep what was found.

        Raises:
            OutputError: the cache cannot be written.
            ResourceError: the disk is full.
        """
        key = _key(path)
        if self._journal is not None and key:
            with self._lock:
                self._known[key] = checked
                self._journal.append(_Row(key, checked.sha256, str(checked.size)))


def _key(path: Path) -> str:
    """Empty for a file that is not there."""
    try:
        state = path.stat()
    except OSError:
        return ""
    return f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}"
