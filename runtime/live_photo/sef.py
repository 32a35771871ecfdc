"""Samsung's trailer: named blocks at a file's end, among them the Motion Photo's video or where it lies.

The file ends with a directory (``SEFH``, version, entries), its length and ``SEFT``, all little-endian; each entry
gives a block's type, its distance before the directory and its size; each block begins with its type and name. The
block ``MotionPhoto_Data`` holds the video itself, or ``mpv2`` and its offset and length in the file (big-endian).
Source: ExifTool's documentation of the Samsung trailer's tags; read off real files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD, _TAIL = b"SEFH", b"SEFT"
_VIDEO_NAME = b"MotionPhoto_Data"
_POINTER = b"mpv2"
_MAX_ENTRIES = 256
_SEARCHED_BYTES = 1 << 20
"""Of the file's end: tools append to what Samsung wrote."""


@dataclass(frozen=True, slots=True)
class Block:
    """One named block: where its contents begin and end in the file."""

    name: bytes
    start: int
    end: int


def blocks(data: bytes) -> Iterator[Block]:
    """The trailer's blocks; none where there is no trailer, or a broken one."""
    tail = data.rfind(_TAIL, max(0, len(data) - _SEARCHED_BYTES))
    if tail < 4:
        return
    (length,) = struct.unpack_from("<I", data, tail - 4)
    head = tail - 4 - length
    if head < 0 or data[head : head + 4] != _HEAD or length < 12:
        return
    (count,) = struct.unpack_from("<I", data, head + 8)
    for index in range(min(count, _MAX_ENTRIES, (length - 12) // 12)):
        _, distance, size = struct.unpack_from("<III", data, head + 12 + 12 * index)
        start = head - distance
        if start < 0 or size < 8 or start + size > head:
            continue
        (name_length,) = struct.unpack_from("<I", data, start + 4)
        body = start + 8 + name_length
        if body <= start + size:
            yield Block(bytes(data[start + 8 : body]), body, start + size)


def video_starts(data: bytes) -> Iterator[int]:
    """Where the trailer says that the video begins."""
    for block in blocks(data):
        if block.name != _VIDEO_NAME:
            continue
        if data[block.start : block.start + 4] == _POINTER and block.end - block.start >= 12:
            yield int.from_bytes(data[block.start + 4 : block.start + 8], "big")
        else:
            yield block.start
