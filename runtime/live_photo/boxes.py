"""Boxes (atoms) of ISO base media files and QuickTime movies, with every length checked.

Source: ISO/IEC 14496-12:2022, 4.2; QuickTime File Format Specification (Apple), "Atoms".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_BOXES = 4096
"""On one level of one file; phones write fewer than fifty."""
_LONG, _TO_END = 1, 0

Read = Callable[[int, int], bytes]
"""``read(at, count)``: at most ``count`` bytes."""


class BoxError(ValueError):
    """A box that leaves what holds it, or too many of them."""


@dataclass(frozen=True, slots=True)
class Box:
    """One box.

    Attributes:
        kind: its four characters.
        start: where its header begins.
        body: where its contents begin.
        end: where it ends.
    """

    kind: bytes
    start: int
    body: int
    end: int


def walk(data: bytes | bytearray, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes between two positions, one after the other; a rest of fewer than eight bytes is padding.

    Raises:
        BoxError: one leaves its place, or there are more than ``MAX_BOXES``.
    """
    view = memoryview(data)
    return walk_by(lambda at, count: bytes(view[at : at + count]), start, len(data) if end is None else end)


def walk_by(read: Read, start: int, end: int) -> Iterator[Box]:
    """:func:`walk` over what need not be in memory: only headers are read."""
    at, count = start, 0
    while at + 8 <= end:
        header = read(at, 16)
        if len(header) < 8:
            raise BoxError(f"the file ends inside the header of the box at byte {at}")
        size, kind = struct.unpack_from(">I4s", header)
        body = at + 8
        if size == _LONG:
            if len(header) < 16:
                raise BoxError(f"the file ends inside the header of the box at byte {at}")
            (size,) = struct.unpack_from(">Q", header, 8)
            body = at + 16
        elif size == _TO_END:
            size = end - at
        if size < body - at or at + size > end:
            raise BoxError(f"the box {_name(kind)} at byte {at} says that it is {size} bytes long; {end - at} are left")
        count += 1
        if count > MAX_BOXES:
            raise BoxError(f"more than {MAX_BOXES} boxes on one level")
        yield Box(kind, at, body, at + size)
        at += size


def children(data: bytes | bytearray, parent: Box) -> Iterator[Box]:
    """The boxes inside one. ``meta`` is a full box in ISO files and a plain one in QuickTime's."""
    start = parent.body
    if parent.kind == b"meta" and data[start + 4 : start + 8] != b"hdlr":
        start += 4
    return walk(data, start, parent.end)


def find_all(data: bytes | bytearray, within: Box, *path: bytes) -> Iterator[Box]:
    """Every box that a path of kinds leads to."""
    for box in children(data, within):
        if box.kind == path[0]:
            if len(path) == 1:
                yield box
            else:
                yield from find_all(data, box, *path[1:])


def find(data: bytes | bytearray, within: Box, *path: bytes) -> Box | None:
    """The first of :func:`find_all`."""
    return next(find_all(data, within, *path), None)


def unpack(layout: str, data: bytes | bytearray, at: int, box: Box) -> tuple[int, ...]:
    """Big-endian integers inside a box.

    Raises:
        BoxError: they reach beyond its end.
    """
    if at < box.body or at + struct.calcsize(">" + layout) > box.end:
        raise BoxError(f"the box {_name(box.kind)} at byte {box.start} is too short")
    return struct.unpack_from(">" + layout, data, at)


def _name(kind: bytes) -> str:
    return repr(kind.decode("latin-1"))
