"""TIFF structure, read and written: TIFF files' directories, and EXIF blocks, which are TIFF files without pixels.

Offsets are kept wherever possible: an edited block keeps its bytes and gets a new directory at its end, so that
maker notes, which refer to absolute offsets, stay readable. Source: TIFF 6.0 (Adobe, 1992), sections 2, 8 and 14;
Exif 2.32 (CIPA DC-008), section 4.6; BigTIFF (read only) as libtiff defines it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from livemoments.types import Size

SHORT, LONG, UNDEFINED = 3, 4, 7
BYTE = 1
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}

PHOTOMETRIC, ORIENTATION, XMP, ICC = 262, 274, 700, 34675
EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965
_X_RESOLUTION = 282
_COLOR_SPACE, _UNCALIBRATED, _ADOBE_RGB = 40961, 65535, 2
_USER_COMMENT, _PIXEL_WIDTH, _PIXEL_HEIGHT = 37510, 40962, 40963
_THUMBNAIL_AT, _THUMBNAIL_BYTES = 513, 514
# What describes how pixels lie in a file, as against what they show: never carried from one file to the next.
_LAYOUT_TAGS = frozenset(
    [*range(254, 267), 273, 277, 278, 279, 284, *range(286, 294), *range(317, 348), *range(512, 533), XMP, 34377, ICC]
)
_STRIP_BYTES = 1 << 20
_DEFLATE_LEVEL = 4  # level 6 is 1 % smaller on a 12-megapixel photo and takes 25 % longer
MAX_PIXEL_BYTES = (1 << 32) - (1 << 26)  # classic TIFF's offsets have 32 bits; 64 MiB are left for everything else


MAX_ENTRIES = 1000
"""Of a directory that is carried over: cameras write about a hundred, and readers refuse thousands."""


class TiffError(ValueError):
    """The structure is broken or leaves the data."""


class Entry(NamedTuple):
    """One field of a directory: its type, the number of values and where the first one lies."""

    kind: int
    length: int
    at: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all its values."""
        return _TYPE_BYTES[self.kind] * self.length


class Tiff:
    """A parsed header over the bytes of a TIFF file or of an EXIF block (without its ``Exif\\0\\0`` prefix).

    Raises:
        TiffError: the data does not start like a TIFF file.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        orders = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
        if bytes(data[:4]) not in orders:
            raise TiffError("does not start like a TIFF file")
        self.data = data
        self.order, self.big = orders[bytes(data[:4])]
        self.first = self._unpack("Q", 8) if self.big else self._unpack("I", 4)

    def _unpack(self, code: str, at: int) -> int:
        try:
            return int(struct.unpack_from(self.order + code, self.data, at)[0])
        except (struct.error, OverflowError):  # the latter for offsets past what any memory has
            raise TiffError("the data ends inside a directory") from None

    def directory(self, offset: int) -> tuple[dict[int, Entry], int]:
        """The entries of the directory at ``offset`` by tag, and the next directory's offset (0: none).

        Entries of unknown types are left out, as the specification asks.

        Raises:
            TiffError: the directory or a value leaves the data.
        """
        count = self._unpack("Q" if self.big else "H", offset)
        start, step, inline = (offset + 8, 20, 8) if self.big else (offset + 2, 12, 4)
        following = self._unpack("Q" if self.big else "I", start + step * count)
        entries = {}
        for at in range(start, start + step * count, step):
            kind, values = self._unpack("H", at + 2), self._unpack("Q" if self.big else "I", at + 4)
            if kind not in _TYPE_BYTES:
                continue
            field = at + step - inline
            if _TYPE_BYTES[kind] * values > inline:
                field = self._unpack("Q" if self.big else "I", field)
            entry = Entry(kind, values, field)
            if entry.at + entry.n_bytes > len(self.data):
                raise TiffError(f"the value of tag {self._unpack('H', at)} lies beyond the end")
            entries[self._unpack("H", at)] = entry
        return entries, following

    def value(self, entry: Entry) -> bytes:
        """An entry's values as they are stored."""
        return bytes(self.data[entry.at : entry.at + entry.n_bytes])

    def numbers(self, entry: Entry | None) -> tuple[int, ...]:
        """An entry's values; empty when it is absent or not of an unsigned integer type."""
        if entry is None or entry.kind not in _INTEGERS:
            return ()
        return struct.unpack(f"{self.order}{entry.length}{_INTEGERS[entry.kind]}", self.value(entry))

    def number(self, entry: Entry | None, default: int = 0) -> int:
        """The first of :meth:`numbers`."""
        return next(iter(self.numbers(entry)), default)


class _Editor:
    """A classic TIFF under construction: ``blob`` only grows, and ``Entry.at`` points into it."""

    def __init__(self, base: bytes = b"II*\0\0\0\0\0") -> None:
        self.blob = bytearray(base)
        self.order = "<" if base[:2] == b"II" else ">"

    def add(self, kind: int, value: bytes) -> Entry:
        self.blob += b"\0" * (len(self.blob) % 2)
        at = len(self.blob)
        self.blob += value
        return Entry(kind, len(value) // _TYPE_BYTES[kind], at)

    def integers(self, kind: int, values: Iterable[int]) -> Entry:
        numbers = list(values)
        return self.add(kind, struct.pack(f"{self.order}{len(numbers)}{_INTEGERS[kind]}", *numbers))

    def add_directory(self, entries: dict[int, Entry]) -> int:
        """Write a directory (without a successor) and return its offset."""
        lines = [struct.pack(self.order + "H", len(entries))]
        for tag in sorted(entries):
            kind, count, at = entries[tag]
            size = _TYPE_BYTES[kind] * count
            field = bytes(self.blob[at : at + size]) if size <= 4 else struct.pack(self.order + "I", at)
            lines.append(struct.pack(self.order + "HHI", tag, kind, count) + field.ljust(4, b"\0"))
        return self.add(UNDEFINED, b"".join([*lines, b"\0\0\0\0"])).at

    def finish(self, entries: dict[int, Entry]) -> bytes:
        """Write the first directory, make the header point to it, and return everything."""
        struct.pack_into(self.order + "I", self.blob, 4, self.add_directory(entries))
        return bytes(self.blob)


def get_number(data: bytes, tag: int, default: int) -> int:
    """An integer of the first directory, e.g. ``ORIENTATION``.

    Raises:
        TiffError: the structure is broken.
    """
    tiff = Tiff(data)
    return tiff.number(tiff.directory(tiff.first)[0].get(tag), default)


def set_number(data: bytes, tag: int, value: int) -> bytes:
    """The same bytes with an integer of the first directory, if it is there, overwritten in place.

    Raises:
        TiffError: the structure is broken.
    """
    tiff = Tiff(data)
    entry = tiff.directory(tiff.first)[0].get(tag)
    if entry is None or not tiff.numbers(entry) or tiff.number(entry) == value:
        return data
    patched = bytearray(data)
    struct.pack_into(tiff.order + _INTEGERS[entry.kind], patched, entry.at, value)
    return bytes(patched)


def extract_exif(data: bytes) -> bytes | None:
    """The EXIF block of a TIFF file: what its first directory says about the picture, and the EXIF and GPS ones.

    Raises:
        TiffError: the structure is broken.
    """
    tiff = Tiff(data)
    editor = _Editor(b"II*\0\0\0\0\0" if tiff.order == "<" else b"MM\0*\0\0\0\0")
    entries = _copy_directory(tiff, tiff.first, editor)
    kept = {tag: entry for tag, entry in entries.items() if tag not in _LAYOUT_TAGS}
    return editor.finish(kept) if kept else None


def _copy_directory(tiff: Tiff, offset: int, editor: _Editor, *, nested: bool = True) -> dict[int, Entry]:
    copied = {}
    for tag, entry in tiff.directory(offset)[0].items():
        if tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD):
            if nested or tag == INTEROP_IFD:
                inner = _copy_directory(tiff, tiff.number(entry), editor, nested=False) if tiff.number(entry) else {}
                copied[tag] = editor.integers(LONG, [editor.add_directory(inner)])
        elif entry.kind < 16 and tag not in _LAYOUT_TAGS:  # 16 to 18 are BigTIFF's own types
            copied[tag] = editor.add(entry.kind, tiff.value(entry))
    return copied


def exif_directory(tiff: Tiff) -> dict[int, Entry]:
    """The entries of the EXIF directory that the first directory points to; empty where there is none.

    Raises:
        TiffError: the structure is broken.
    """
    entries, _ = tiff.directory(tiff.first)
    return tiff.directory(tiff.number(entries[EXIF_IFD]))[0] if EXIF_IFD in entries else {}


def has_resolution(exif: bytes | None) -> bool:
    """Whether an EXIF block states a resolution.

    Raises:
        TiffError: the block is broken.
    """
    if exif is None:
        return False
    tiff = Tiff(exif)
    return _X_RESOLUTION in tiff.directory(tiff.first)[0]


def is_adobe_rgb(exif: bytes) -> bool:
    """Whether an EXIF block says that the pixels are Adobe RGB, as cameras do that embed no profile: ColorSpace is 2,
    or 65535 with the interoperability index R03 (DCF 2.0).

    Raises:
        TiffError: the block is broken.
    """
    tiff = Tiff(exif)
    inner = exif_directory(tiff)
    space = tiff.number(inner.get(_COLOR_SPACE))
    if space != _UNCALIBRATED or INTEROP_IFD not in inner:
        return space == _ADOBE_RGB
    index = tiff.directory(tiff.number(inner[INTEROP_IFD]))[0].get(1)
    return index is not None and tiff.value(index).startswith(b"R03")


def user_comment(exif: bytes) -> str:
    """UserComment of an EXIF block, stripped; empty where there is none or it is in an unknown code.

    Raises:
        TiffError: the block is broken.
    """
    tiff = Tiff(exif)
    inner = exif_directory(tiff)
    value = tiff.value(inner[_USER_COMMENT]) if _USER_COMMENT in inner else b""
    codes = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16-le" if tiff.order == "<" else "utf-16-be"}
    code = codes.get(value[:8])
    return value[8:].decode(code, errors="replace").strip("\0 ") if code else ""


def edit_exif(exif: bytes | None, *, size: Size, comment: str | None) -> bytes | None:
    """An EXIF block made true of a new picture: upright, of this size, without the old picture's thumbnail.

    Args:
        exif: the block, without ``Exif\\0\\0``; None: none yet.
        size: the picture's size in pixels.
        comment: replaces UserComment where given; empty: removes it.

    Returns:
        The block; None where there was none and there is no comment.

    Raises:
        TiffError: the block is broken.
    """
    if exif is None and not comment:
        return None
    editor = _Editor()
    entries: dict[int, Entry] = {}
    inner: dict[int, Entry] = {}
    if exif is not None:
        tiff = Tiff(exif)
        entries, following = tiff.directory(tiff.first)
        inner = exif_directory(tiff)
        if max(len(entries), len(inner)) > MAX_ENTRIES:
            raise TiffError(f"a directory has more than {MAX_ENTRIES} entries")
        editor = _Editor(exif[: _thumbnail_start(tiff, following)])
        entries = {tag: e for tag, e in entries.items() if e.at + e.n_bytes <= len(editor.blob)}
        inner = {tag: e for tag, e in inner.items() if e.at + e.n_bytes <= len(editor.blob)}
    entries[ORIENTATION] = editor.integers(SHORT, [1])
    for directory, tags in ((entries, (256, 257)), (inner, (_PIXEL_WIDTH, _PIXEL_HEIGHT))):
        for tag, length in zip(tags, (size.width, size.height), strict=True):
            if tag in directory:
                directory[tag] = editor.integers(LONG, [length])
    if comment == "":
        inner.pop(_USER_COMMENT, None)
    elif comment is not None:
        utf16 = "utf-16-le" if editor.order == "<" else "utf-16-be"
        coded = b"ASCII\0\0\0" + comment.encode() if comment.isascii() else b"UNICODE\0" + comment.encode(utf16)
        inner[_USER_COMMENT] = editor.add(UNDEFINED, coded)
    entries.pop(EXIF_IFD, None)
    if inner:
        entries[EXIF_IFD] = editor.integers(LONG, [editor.add_directory(inner)])
    return editor.finish(entries)


def _thumbnail_start(tiff: Tiff, following: int) -> int:
    """Where the thumbnail starts if the block ends with it, as cameras write it; else the block's length."""
    end = len(tiff.data)
    try:
        entries = tiff.directory(following)[0] if following else {}
    except TiffError:
        return end
    start, size = tiff.number(entries.get(_THUMBNAIL_AT)), tiff.number(entries.get(_THUMBNAIL_BYTES))
    return start if 8 <= start < end <= start + size + 4 else end


def encode_tiff(pixels: np.ndarray, *, icc_profile: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A baseline RGB TIFF: deflate-compressed strips with the horizontal predictor, in the EXIF block's byte order.

    The file starts with the EXIF block itself, so every offset in it stays valid.

    Args:
        pixels: (H, W, 3) uint8 or uint16, at most ``MAX_PIXEL_BYTES`` of them.
        icc_profile: becomes tag 34675.
        exif: a block that :func:`edit_exif` made.
        xmp: becomes tag 700.
    """
    height, width, _ = pixels.shape
    editor = _Editor()
    entries: dict[int, Entry] = {}
    if exif is not None:
        editor, tiff = _Editor(exif), Tiff(exif)
        entries = {tag: e for tag, e in tiff.directory(tiff.first)[0].items() if tag not in _LAYOUT_TAGS}
    rows = min(height, max(1, _STRIP_BYTES // pixels[0].nbytes))
    stored = np.dtype(f"{editor.order}u{pixels.dtype.itemsize}")
    offsets, counts = [], []
    for top in range(0, height, rows):
        strip = pixels[top : top + rows].copy()
        strip[:, 1:] -= pixels[top : top + rows, :-1]  # modulo 2^8 or 2^16, as the predictor is defined
        entry = editor.add(UNDEFINED, zlib.compress(strip.astype(stored, copy=False).tobytes(), _DEFLATE_LEVEL))
        offsets.append(entry.at)
        counts.append(entry.n_bytes)
    bits = 8 * pixels.dtype.itemsize
    short = {258: [bits] * 3, 259: [8], 262: [2], 277: [3], 284: [1], 317: [2], 339: [1] * 3, ORIENTATION: [1]}
    entries |= {tag: editor.integers(SHORT, values) for tag, values in short.items()}
    long = {256: [width], 257: [height], 273: offsets, 278: [rows], 279: counts}
    entries |= {tag: editor.integers(LONG, values) for tag, values in long.items()}
    if icc_profile:
        entries[ICC] = editor.add(UNDEFINED, icc_profile)
    if xmp:
        entries[XMP] = editor.add(BYTE, xmp)
    return editor.finish(entries)
