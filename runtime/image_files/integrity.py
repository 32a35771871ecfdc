"""Whether an image file is all there, judged by its container: decoders accept files whose last bytes are missing."""

from __future__ import annotations

import re

from livemoments.runtime.image_files import png_chunks
from livemoments.runtime.image_files.tiff_tags import Tiff, TiffError

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither stuffing, nor fill bytes, nor a restart
_SOI, _SOS, _EOI, _TEM = 0xD8, 0xDA, 0xD9, 0x01
MAX_SCANS = 100
"""Of a progressive JPEG; encoders make about ten. Each goes through the whole picture: a thousand take a minute."""


def container(data: bytes) -> str | None:
    """PNG, JPEG, TIFF, WEBP or HEIC by the first bytes; None for anything else."""
    if data.startswith(png_chunks.SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(_TIFF_STARTS):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and re.search(rb"hei[cxms]|hev[cxms]", data[8 : int.from_bytes(data[:4], "big")]):
        return "HEIC"
    return None


def find_damage(data: bytes) -> str | None:
    """What is missing or damaged, as the end of a sentence; None where nothing is, or the format is not one of four.

    PNG: every chunk to IEND, with the checksums of the critical ones. JPEG: every marker segment to EOI (what follows
    it, such as a motion photo's video, is ignored). TIFF: the first directory, its values, its strips or tiles.
    WebP: the length that RIFF states.
    """
    checks = {"PNG": _check_png, "JPEG": _check_jpeg, "TIFF": _check_tiff, "WEBP": _check_webp}
    check = checks.get(container(data) or "")
    return check(data) if check else None


def _check_png(data: bytes) -> str | None:
    try:
        for _ in png_chunks.walk(data):
            pass
    except png_chunks.PngError as error:
        return str(error)
    return None


def _check_jpeg(data: bytes) -> str | None:
    at, scans = 2, 0
    while match := _JPEG_MARKER.search(data, at):
        marker, at = data[match.start() + 1], match.end()
        if marker == _EOI:
            return None if scans else "it ends before any picture data"
        if marker in (_SOI, _TEM):
            continue
        scans += marker == _SOS
        if scans > MAX_SCANS:
            return f"it has more than {MAX_SCANS} scans"
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return f"the file ends after {len(data)} bytes, before the closing EOI marker"


def _check_tiff(data: bytes) -> str | None:
    try:
        tiff = Tiff(data)
        entries, _ = tiff.directory(tiff.first)
    except TiffError as error:
        return str(error)
    for at_tag, bytes_tag in ((273, 279), (324, 325)):  # strips, tiles
        offsets, counts = tiff.numbers(entries.get(at_tag)), tiff.numbers(entries.get(bytes_tag))
        ends = [at + count for at, count in zip(offsets, counts, strict=False)] + list(offsets)
        if ends and max(ends) > len(data):
            return f"its pixels reach to byte {max(ends)}, the file ends after {len(data)}"
    return None


def _check_webp(data: bytes) -> str | None:
    stated = 8 + int.from_bytes(data[4:8], "little")
    return f"it should be {stated} bytes long, the file ends after {len(data)}" if len(data) < stated else None
