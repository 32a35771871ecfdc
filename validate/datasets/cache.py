"""Images that were checked already, so that a run that goes on does not decode them again."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from livemoments.errors import OutputError
from livemoments.runtime.photo_index import CheckedFile
from livemoments.store.files import read_file
from livemoments.types import Size

FILE_NAME = "checked-images.jsonl"


class FileCache:
    """Checked files by path, size in bytes and time of change in ns: a JSON line each, appended as they are found.

    Args:
        folder: where the file is kept; ``None`` keeps nothing.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._known: dict[str, CheckedFile] = {}
        self._lock = threading.Lock()
        self._path = None if folder is None else folder / FILE_NAME
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = read_file(self._path).decode("utf-8", "replace").splitlines() if self._path.exists() else []
            if lines:
                self._path.open("a").close()  # it must be possible to add to it
        except OSError as error:
            raise OutputError(folder or "", f"cannot be written ({error.strerror})", fix="choose another one") from None
        for line in lines:
            self._read(line)

    def get(self, path: Path) -> CheckedFile | None:
        """What was found in this file, if it was not changed since."""
        key = self._key(path)
        with self._lock:
            return self._known.get(key) if key else None

    def put(self, path: Path, found: CheckedFile) -> None:
        """Keep what was found.

        Raises:
            OutputError: the cache cannot be written.
        """
        key = self._key(path)
        if self._path is None or key is None:
            return
        row = {"key": key, "sha256": found.sha256, "size": str(found.size)}
        with self._lock:
            self._known[key] = found
            try:
                with self._path.open("a", encoding="utf-8") as stream:
                    # a newline first: what a killed run left half-written ends there
                    stream.write("\n" + json.dumps(row))
            except OSError as error:
                raise OutputError(self._path, f"cannot be written ({error.strerror})") from None

    def _read(self, line: str) -> None:
        try:
            row = json.loads(line)
            size = Size.parse(row["size"])
            if len(row["sha256"]) == 64:
                self._known[row["key"]] = CheckedFile(row["sha256"], size)
        except Exception:
            return  # an empty line, or half of one: decoded again

    def _key(self, path: Path) -> str | None:
        if self._path is None:
            return None
        try:
            state = path.stat()
        except OSError:
            return None
        return f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}"
