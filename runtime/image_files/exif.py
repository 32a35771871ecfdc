"""EXIF made true of a single still: claims that a video belongs to it, which phones keep outside of XMP, are removed.

OPPO and OnePlus mark a motion photo by ``oplus_`` and a number in UserComment; Apple pairs a photo with its video by
the ContentIdentifier in its maker note (tag 17), whose directory follows the words ``Apple iOS`` and counts offsets
from its own start.
"""

from __future__ import annotations

import struct

from livemoments.runtime.image_files.tiff_tags import Tiff, exif_directory

_APPLE = b"Apple iOS\0"
_CONTENT_IDENTIFIER = 17
_DIRECTORY_AT = 14
"""Behind the words: two bytes of version, two of byte order."""
_MAKER_NOTE = 37500
_ENTRY_BYTES = 12


def is_video_mark(comment: str) -> bool:
    """Whether a UserComment only says that the file is a motion photo."""
    return comment.startswith("oplus_") and comment.removeprefix("oplus_").isdigit()


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
