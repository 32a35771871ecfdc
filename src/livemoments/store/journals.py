"""Journals: finished pieces of long work in a file of JSON lines, so that a process that was killed can go on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from livemoments.store.claims import BusyError, only_one
from livemoments.store.errors import output_errors
from livemoments.store.files import read_file

Piece = TypeVar("Piece")


@contextlib.contextmanager
def work_alone(folder: Path, lock: str, *, place: Path, busy: Callable[[str], Exception]) -> Iterator[None]:
    """Make the folder of long work, and keep every other process and thread out of it while the block runs.

    Args:
        folder: holds the work.
        lock: name of the lock's file in it.
        place: what an error names.
        busy: makes the error for a folder in which somebody works already, from what its fix has to add.

    Raises:
        OutputError: the folder cannot be made.
    """
    with contextlib.ExitStack() as held:
        try:
            with output_errors(place):
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(only_one(folder / lock))
        except BusyError as other:
            raise busy(other.hint) from None
        yield


class LineJournal:
    """A first line that says what the file belongs to, then one line for each finished piece.

    Every line is on the disk when :meth:`append` returns. What a killed process left half-written at the end is cut off
    when the file is opened; nothing else ever changes a finished line.

    Args:
        path: the file; its folder is made.
        durable: wait for the disk after each line; without, lines outlive the process, but perhaps not the machine.

    Attributes:
        path: the file.
        head: the first line; ``None`` where there is no file, or none that begins with a JSON object.
        lines: the others, as JSON gives them.

    Raises:
        OutputError: the file cannot be read or written.
        ResourceError: the disk is full.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self._durable = durable
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

    def resume(self, head: dict[str, Any], kind: type[Piece]) -> list[Piece]:
        """The pieces that were finished under this first line; begin anew where the file has another, or none.

        Args:
            head: what the pieces belong to.
            kind: what each of them is; from the first line that is none on, they are cut off.

        Raises:
            OutputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        if self.head != head:
            self.start(head)
        pieces: list[Piece] = []
        for line in self.lines:
            try:
                pieces.append(msgspec.convert(line, kind))
            except msgspec.ValidationError:
                self.keep(len(pieces))
                break
        return pieces

    def start(self, head: dict[str, Any]) -> None:
        """Begin anew, with this first line; an older journal is there until the new one is.

        Raises:
            OutputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        with output_errors(self.path):
            temporary = self.path.with_name(f".{self.path.name}.new")
            line = _line(head)
            self._write(temporary, line, "wb")
            temporary.replace(self.path)
        self.head, self.lines, self._ends, self._head_end = head, [], [], len(line)

    def append(self, piece: Any) -> None:
        """Add a finished piece, JSON-ready data or a struct, and flush it to the disk.

        Raises:
            OutputError: the file cannot be written.
            ResourceError: the disk is full.
        """
        assert self.head is not None, "start() comes first"
        plain = msgspec.to_builtins(piece)
        line = _line(plain)
        with output_errors(self.path):
            try:
                self._write(self.path, line, "ab")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._end)  # a full disk took a part of the line
                raise
        self.lines.append(plain)
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

    def _write(self, path: Path, data: bytes, mode: str) -> None:
        with path.open(mode) as stream:
            stream.write(data)
            stream.flush()
            if self._durable:
                os.fsync(stream.fileno())

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
