"""EXIF made true of a single still: claims that a video belongs to it, which phones keep outside of XMP, are removed.

OPPO and OnePlus mark a motion photo by ``oplus_`` and a number in UserComment; Apple pairs a photo with its video by
the ContentIdentifier in its maker note (tag 17), whose directory follows the words ``Apple iOS`` and counts offsets
from its own start.
"""

from __future__ import annotations

import datetime
import struct

from livemoments.runtime.image_files.tiff_tags import Tiff, TiffError, exif_directory

_APPLE = b"Apple iOS\0"
_CONTENT_IDENTIFIER = 17
_DIRECTORY_AT = 14
"""Behind the words: two bytes of version, two of byte order."""
_MAKER_NOTE = 37500
_TEXT_KIND = 2
_ENTRY_BYTES = 12
_TIME_ORIGINAL, _TIME_DIGITIZED = 36867, 36868
_SUBSEC_ORIGINAL, _SUBSEC_DIGITIZED = 37521, 37522
_TIME_LAYOUT, _TIME_CHARACTERS = "%Y:%m:%d %H:%M:%S", 19
_MOST_DIGITS = 9


def is_video_mark(comment: str) -> bool:
    """Whether a UserComment only says that the file is a motion photo."""
    return comment.startswith("oplus_") and comment.removeprefix("oplus_").isdigit()


def content_identifier(exif: bytes | None) -> str | None:
    """Apple's ContentIdentifier, by which a photo's video is found; ``None`` where there is none to be read."""
    try:
        tiff = Tiff(exif or b"")
        note = exif_directory(tiff).get(_MAKER_NOTE)
    except TiffError:
        return None
    found = None if note is None else identifier_span(tiff.value(note))
    return None if note is None or found is None else _clean(tiff.value(note)[found[0] : found[1]])


def identifier_span(note: bytes) -> tuple[int, int] | None:
    """Where in an Apple maker note the ContentIdentifier's text begins and ends."""
    start = _DIRECTORY_AT + 2
    if not note.startswith(_APPLE) or len(note) < start:
        return None
    order = "<" if note[12:14] == b"II" else ">"
    (count,) = struct.unpack_from(order + "H", note, _DIRECTORY_AT)
    for at in range(start, min(start + _ENTRY_BYTES * count, len(note) - _ENTRY_BYTES + 1), _ENTRY_BYTES):
        tag, kind, length, value_at = struct.unpack_from(order + "HHII", note, at)
        if tag == _CONTENT_IDENTIFIER and kind == _TEXT_KIND and length > 4 and value_at + length <= len(note):
            return value_at, value_at + length
    return None


def with_content_identifier(exif: bytes, identifier: str) -> bytes:
    """The block with another ContentIdentifier, as long as the one in it; every other byte stays.

    Raises:
        TiffError: the block is broken, or has no identifier of that length.
    """
    tiff = Tiff(exif)
    note = exif_directory(tiff).get(_MAKER_NOTE)
    found = None if note is None else identifier_span(tiff.value(note))
    if note is None or found is None or found[1] - found[0] not in (len(identifier), len(identifier) + 1):
        raise TiffError("the maker note has no content identifier of the usual length")
    start = note.at + found[0]
    return exif[:start] + identifier.encode("ascii") + exif[start + len(identifier) :]


def _clean(text: bytes) -> str | None:
    return text.decode("ascii", errors="replace").strip("\0 ") or None


def shift_time(exif: bytes, seconds: float) -> tuple[bytes, bool]:
    """The block with the instant at which the picture was taken, and was digitised, moved; every other byte stays.

    Without fractions of a second (SubSecTime) in the block, the time moves by whole seconds, rounded.

    Returns:
        The block, and whether it states an instant that could be moved.

    Raises:
        TiffError: the block is broken.
    """
    tiff = Tiff(exif)
    inner = exif_directory(tiff)
    edited = bytearray(exif)
    is_moved = False
    for date_tag, fraction_tag in ((_TIME_ORIGINAL, _SUBSEC_ORIGINAL), (_TIME_DIGITIZED, _SUBSEC_DIGITIZED)):
        entry, fraction = inner.get(date_tag), inner.get(fraction_tag)
        taken = None if entry is None else _parse_time(tiff.value(entry))
        if entry is None or taken is None:
            continue
        digits = b"" if fraction is None else tiff.value(fraction).split(b"\0")[0].strip()
        count = len(digits) if digits.isdigit() and len(digits) <= _MOST_DIGITS else 0
        unit = 10**count
        ticks = round(seconds * unit) + (int(digits) if count else 0)
        taken += datetime.timedelta(seconds=ticks // unit)
        edited[entry.at : entry.at + _TIME_CHARACTERS] = taken.strftime(_TIME_LAYOUT).encode()
        if fraction is not None and count:
            at = fraction.at + tiff.value(fraction).index(digits)
            edited[at : at + count] = f"{ticks % unit:0{count}d}".encode()
        is_moved = True
    return bytes(edited), is_moved


def _parse_time(value: bytes) -> datetime.datetime | None:
    try:
        taken = datetime.datetime.strptime(value[:_TIME_CHARACTERS].decode("ascii"), _TIME_LAYOUT)
    except ValueError:
        return None
    return taken if 1900 < taken.year < 9000 else None


def without_video_link(exif: bytes) -> bytes:
    """The block without Apple's ContentIdentifier; every other byte stays where it is.

    Raises:
        TiffError: the block is broken.
    """
    tiff = Tiff(exif)
    note = exif_directory(tiff).get(_MAKER_NOTE)
    if note is None or not tiff.value(note).startswith(_APPLE):
        return exif
    edited = _without_entry(tiff.value(note), _CONTENT_IDENTIFIER)
    return exif[: note.at] + edited + exif[note.at + note.n_bytes :]


def _without_entry(note: bytes, tag: int) -> bytes:
    """An Apple maker note of the same length whose directory lacks a tag; its value is overwritten."""
    order = "<" if note[12:14] == b"II" else ">"
    start = _DIRECTORY_AT + 2
    if len(note) < start:
        return note
    (count,) = struct.unpack_from(order + "H", note, _DIRECTORY_AT)
    end = start + _ENTRY_BYTES * count
    if end + 4 > len(note):
        return note
    lines = [note[at : at + _ENTRY_BYTES] for at in range(start, end, _ENTRY_BYTES)]
    kept = [line for line in lines if struct.unpack_from(order + "H", line)[0] != tag]
    edited = bytearray(note)
    for line in set(lines) - set(kept):
        _, _, length, at = struct.unpack(order + "HHII", line)
        if length > 4 and at + length <= len(note):  # text, one byte a character
            edited[at : at + length] = b"\0" * length
    body = b"".join(kept) + note[end : end + 4]  # the offset of the next directory follows the entries
    struct.pack_into(order + "H", edited, _DIRECTORY_AT, len(kept))
    edited[start : end + 4] = body.ljust(end + 4 - start, b"\0")
    return bytes(edited)
