"""Segments put into JPEG files, and a second picture behind the first (CIPA DC-007, "Multi-Picture Format")."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_MPF_PREFIX = b"MPF\0"
_APPLICATION = range(0xE0, 0xF0)
_APP2 = 0xE2
_LONG, _UNDEFINED = 4, 7
_PRIMARY = 0x20030000
"""Representative image, of the type "Baseline MP Primary Image"."""
_ENTRIES, _ENTRY_BYTES = 0xB002, 16
_IFD_BYTES = 2 + 3 * 12 + 4


def segment(marker: int, body: bytes) -> bytes:
    """One segment: marker, length, contents.

    Raises:
        ValueError: more than a segment holds.
    """
    if len(body) > 0xFFFF - 2:
        raise ValueError(f"a JPEG segment holds 65533 bytes, not {len(body)}")
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def insert_segments(jpeg: bytes, segments: Sequence[bytes]) -> bytes:
    """The file with segments behind its application segments (EXIF, XMP, ICC profile)."""
    at = _behind_application_segments(jpeg)
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def append_picture(jpeg: bytes, picture: bytes) -> bytes:
    """The file with an index of two pictures, and the second one behind it."""
    at = _behind_application_segments(jpeg)
    header_at = at + 4 + len(_MPF_PREFIX)  # offsets in the index count from its TIFF header
    entries_at = 8 + _IFD_BYTES
    bytes_of_index = len(segment(_APP2, bytes(len(_MPF_PREFIX) + entries_at + 2 * _ENTRY_BYTES)))
    length = len(jpeg) + bytes_of_index
    index = struct.pack(">2sHI H", b"MM", 42, 8, 3)
    index += struct.pack(">HHI4s", 0xB000, _UNDEFINED, 4, b"0100")
    index += struct.pack(">HHII", 0xB001, _LONG, 1, 2)
    index += struct.pack(">HHIII", _ENTRIES, _UNDEFINED, 2 * _ENTRY_BYTES, entries_at, 0)
    index += struct.pack(">IIIHH", _PRIMARY, length, 0, 0, 0)
    index += struct.pack(">IIIHH", 0, len(picture), length - header_at, 0, 0)
    return jpeg[:at] + segment(_APP2, _MPF_PREFIX + index) + jpeg[at:] + picture


def other_pictures(jpeg: bytes) -> list[tuple[int, int]]:
    """Where the index says that pictures behind the first lie, start and end; only places that are in the file.

    Raises:
        struct.error: the index is cut short.
    """
    for at, end in _application_segments(jpeg):
        if jpeg[at + 1] == _APP2 and jpeg[at + 4 : at + 8] == _MPF_PREFIX:
            return [(a, b) for a, b in _indexed(jpeg[at + 8 : end], at + 8) if 0 < a < b <= len(jpeg)]
    return []


def _indexed(index: bytes, header_at: int) -> Iterator[tuple[int, int]]:
    order = ">" if index[:2] == b"MM" else "<"
    (directory_at,) = struct.unpack_from(order + "I", index, 4)
    (count,) = struct.unpack_from(order + "H", index, directory_at)
    for number in range(count):
        tag, _, length, entries_at = struct.unpack_from(order + "HHII", index, directory_at + 2 + 12 * number)
        if tag == _ENTRIES:
            for place in range(entries_at + _ENTRY_BYTES, min(entries_at + length, len(index) - 15), _ENTRY_BYTES):
                _, size, offset = struct.unpack_from(order + "III", index, place)
                yield header_at + offset, header_at + offset + size


def _behind_application_segments(jpeg: bytes) -> int:
    return max((end for _, end in _application_segments(jpeg)), default=2)


def _application_segments(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each, in the order of the file."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] in _APPLICATION:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        yield at, end
        at = end
