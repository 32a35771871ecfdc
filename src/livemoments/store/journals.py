"""Journals: finished pieces of long work in a file of JSON lines, so that a process that was killed can go on."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from livemoments.store.errors import output_errors
from livemoments.store.files import read_file


class LineJournal:
    """A first line that says what the file belongs to, then one line for each finished piece.

    Every line is on the disk when :meth:`append` returns. What a killed process left half-written at the end is cut off
    when the file is opened; nothing else ever changes a finished line.

    Args:
        path: the file; its folder is made.

    Attributes:
        path: the file.
        head: the first line; ``None`` where there is no file, or none that begins with a JSON object.
        lines: the others, as JSON gives them.

    Raises:
        OutputError: the file cannot be read or written.
        ResourceError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] | None = None
        self.lines: list[Any] = []
        self._ends: list[int] = []  # in bytes: where each of the lines ends
        self._head_end = 0
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = read_file(path) if path.exists() else b""
            self._read(data)
            if self.head is not None and self._end < len(data):
                os.truncate(path, self._end)

    def start(self, head: dict[str, Any]) -> None:
        """Begin anew, with this first line; an older journal is there until the new one is.

        Raises:
            OutputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        with output_errors(self.path):
            temporary = self.path.with_name(f".{self.path.name}.new")
            line = _line(head)
            _write(temporary, line, "wb")
            temporary.replace(self.path)
        self.head, self.lines, self._ends, self._head_end = head, [], [], len(line)

    def append(self, piece: Any) -> None:
        """Add a finished piece and flush it to the disk.

        Raises:
            OutputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        assert self.head is not None, "start() comes first"
        line = _line(piece)
        with output_errors(self.path):
            try:
                _write(self.path, line, "ab")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._end)  # a full disk took a part of the line
                raise
        self.lines.append(piece)
        self._ends.append(self._end + len(line))

    def keep(self, count: int) -> None:
        """Cut off all but the first ``count`` pieces.

        Raises:
            OutputError: the file cannot be written.
        """
        if count < len(self.lines):
            del self.lines[count:], self._ends[count:]
            with output_errors(self.path):
                os.truncate(self.path, self._end)

    @property
    def _end(self) -> int:
        return self._ends[-1] if self._ends else self._head_end

    def _read(self, data: bytes) -> None:
        end = 0
        for line in data.splitlines(keepends=True):
            try:
                parsed = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            end += len(line)
            if self.head is not None:
                self.lines.append(parsed)
                self._ends.append(end)
            elif isinstance(parsed, dict):
                self.head, self._head_end = parsed, end
            else:
                return


def _line(piece: Any) -> bytes:
    return json.dumps(piece).encode() + b"\n"


def _write(path: Path, data: bytes, mode: str) -> None:
    with path.open(mode) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
