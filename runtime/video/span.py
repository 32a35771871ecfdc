"""A run of bytes of a file, as the video that it is: Motion Photos carry theirs inside the photo's file."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes ``start`` to ``end`` (exclusive) of a file.

    Attributes:
        path: the file.
        start, end: positions in bytes.
    """

    path: Path
    start: int
    end: int

    @classmethod
    def whole(cls, path: Path) -> Span:
        """All of a file.

        Raises:
            OSError: there is no such file.
        """
        return cls(path, 0, path.stat().st_size)

    @property
    def size(self) -> int:
        """How many bytes."""
        return self.end - self.start

    def read(self, at: int, count: int) -> bytes:
        """At most ``count`` bytes from ``at`` (counted from the span's start) on; fewer where it ends.

        Raises:
            OSError: the file cannot be read.
        """
        count = min(count, self.size - at)
        if at < 0 or count <= 0:
            return b""
        with self.path.open("rb") as stream:
            stream.seek(self.start + at)
            return stream.read(count)

    def open(self) -> io.RawIOBase:
        """A file that holds nothing but these bytes, to be closed by the caller.

        Raises:
            OSError: the file cannot be opened.
        """
        return _Window(self)


class _Window(io.RawIOBase):
    """A read-only file over a span."""

    def __init__(self, span: Span) -> None:
        super().__init__()
        self._span = span
        self._at = 0
        self._stream = span.path.open("rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._span.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._span.size - self._at))
        self._stream.seek(self._span.start + self._at)
        found = self._stream.read(count)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._stream.close()
        super().close()
