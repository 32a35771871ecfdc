"""PNG's chunks: walked, checked, taken out and put in. Source: the PNG specification, third edition (W3C)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from livemoments.errors import UsageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = len(SIGNATURE) + 25  # IHDR: length, name, 13 bytes, CRC
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_TEXT_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
MAX_INFLATED_BYTES = 64 << 20
"""Of a profile or text. Pillow ends at 1 MiB, which real profiles (printers', cameras') pass."""


class PngError(ValueError):
    """A chunk is incomplete or damaged."""


class Chunk(NamedTuple):
    """Name and extent of a chunk: ``start`` is its length field, ``end`` the first byte after its CRC."""

    name: bytes
    start: int
    end: int


def walk(png: bytes) -> Iterator[Chunk]:
    """The chunks from IHDR to IEND.

    Raises:
        PngError: the file ends before IEND does, or a critical chunk's CRC is wrong.
    """
    at = len(SIGNATURE)
    name = b""
    while name != b"IEND":
        if at + 12 > len(png):
            raise PngError(f"the file ends after {len(png)} bytes, before the closing IEND chunk")
        length, name = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(png):
            raise PngError(f"the file ends inside chunk {name.decode('latin-1')}")
        crc = int.from_bytes(png[end - 4 : end], "big")
        if name[:1].isupper() and zlib.crc32(memoryview(png)[at + 4 : end - 4]) != crc:
            raise PngError(f"chunk {name.decode('latin-1')} is damaged: its checksum is wrong")
        yield Chunk(name, at, end)
        at = end


def bit_depth(png: bytes) -> int:
    """Bits per sample, from IHDR."""
    return png[24]


def only_pixels(png: bytes) -> bytes:
    """The same picture without ancillary chunks: no gamma, profile or orientation for a decoder to act on."""
    parts = [png[chunk.start : chunk.end] for chunk in walk(png) if chunk.name in _PIXEL_CHUNKS]
    return b"".join([SIGNATURE, *parts])


def without_texts(png: bytes) -> bytes:
    """The same picture without profile and texts, for a decoder that refuses large ones."""
    parts = [png[chunk.start : chunk.end] for chunk in walk(png) if chunk.name not in _TEXT_CHUNKS]
    return b"".join([SIGNATURE, *parts])


def profile(png: bytes) -> bytes | None:
    """iCCP's profile; ``None`` without one, or where it is broken or longer than ``MAX_INFLATED_BYTES``."""
    for body in _bodies(png, b"iCCP"):
        _, _, coded = body.partition(b"\0")
        return _inflated(coded[1:])
    return None


def colour_codes(png: bytes) -> tuple[int, int] | None:
    """cICP's colour primaries and transfer function, as H.273 numbers them; ``None`` without one."""
    for body in _bodies(png, b"cICP"):
        if len(body) == 4:
            return body[0], body[1]
    return None


def pixels_per_metre(png: bytes) -> tuple[int, int] | None:
    """pHYs' resolution, x and y; ``None`` without one, or where it states an aspect ratio only."""
    for body in _bodies(png, b"pHYs"):
        if len(body) == 9 and body[8] == 1:
            x, y = struct.unpack(">II", body[:8])
            return x, y
    return None


def texts(png: bytes) -> dict[str, bytes]:
    """The texts of tEXt, zTXt and iTXt by keyword, as they were coded; broken and endless ones are left out."""
    texts: dict[str, bytes] = {}
    for chunk in walk(png):
        body = png[chunk.start + 8 : chunk.end - 4]
        keyword, _, rest = body.partition(b"\0")
        text: bytes | None = None
        if chunk.name == b"tEXt":
            text = rest
        elif chunk.name == b"zTXt":
            text = _inflated(rest[1:])
        elif chunk.name == b"iTXt" and len(rest) >= 2:
            coded = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
            text = _inflated(coded) if rest[0] else coded
        if text is not None:
            texts[keyword.decode("latin-1")] = text
    return texts


def _bodies(png: bytes, name: bytes) -> Iterator[bytes]:
    return (png[chunk.start + 8 : chunk.end - 4] for chunk in walk(png) if chunk.name == name)


def _inflated(coded: bytes) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(coded, MAX_INFLATED_BYTES)
    except zlib.error:
        return None
    return plain if stream.eof else None


def insert(png: bytes, chunks: Iterable[bytes]) -> bytes:
    """Put chunks (made by the functions below) behind IHDR."""
    return b"".join([png[:_HEADER_END], *chunks, png[_HEADER_END:]])


def icc_chunk(profile: bytes) -> bytes:
    """iCCP."""
    return _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))


def resolution_chunk(x: int, y: int) -> bytes:
    """pHYs: pixels per metre."""
    return _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))


def exif_chunk(exif: bytes) -> bytes:
    """eXIf: the block without ``Exif\\0\\0``."""
    return _chunk(b"eXIf", exif)


def xmp_chunk(xmp: bytes) -> bytes:
    """iTXt with XMP's keyword, uncompressed, as XMP part 3 asks."""
    return _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)


def text_chunks(text: Mapping[str, str]) -> list[bytes]:
    """One iTXt chunk (UTF-8) per item.

    Raises:
        UsageError: a keyword is not 1 to 79 Latin-1 characters without outer or double spaces, or a text holds NUL.
    """
    return [_chunk(b"iTXt", _keyword(key) + b"\0\0\0\0\0" + _no_nul(key, value)) for key, value in text.items()]


def _keyword(key: str) -> bytes:
    printable = all(" " <= c <= "~" or "\xa1" <= c <= "\xff" for c in key)
    if not (printable and 1 <= len(key) <= 79 and key == key.strip() and "  " not in key):
        raise UsageError(f"{key!r} is not a PNG text keyword", fix="use 1 to 79 printable Latin-1 characters")
    return key.encode("latin-1")


def _no_nul(key: str, value: str) -> bytes:
    if "\0" in value:
        raise UsageError(f"the text for {key!r} holds a NUL character")
    return value.encode()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
