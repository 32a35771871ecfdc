"""RGB pixels and their metadata to a file's bytes.

Where things go: the ICC profile, EXIF and XMP to the places that PNG (iCCP, eXIf, iTXt), JPEG (APP2, APP1, APP1),
TIFF (tags 34675, the EXIF directory, 700), WebP (ICCP, EXIF, XMP) and HEIC (a property, two items) define for them.
Text items go to one iTXt chunk each in PNG, elsewhere as one JSON object to EXIF's UserComment; a comment that was
there before stays in that object under ``UserComment``.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from PIL import Image

from livemoments.errors import OutputError, UsageError
from livemoments.runtime.image_files import heif, png_chunks, tiff_tags, xmp_packet
from livemoments.runtime.image_files.exif import is_video_mark, without_video_link
from livemoments.runtime.image_files.gain_map import ISO_PREFIX
from livemoments.runtime.image_files.jpeg_segments import append_picture, insert_segments, segment
from livemoments.types import Size

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP"}
FORMATS |= {".heic": "HEIF", ".heif": "HEIF"}
DEEP_FORMATS = ("PNG", "TIFF")
_WITHOUT_RESOLUTION = ("TIFF", "WEBP", "HEIF")  # beside EXIF's: of TIFF it is a tag of the same directory
_METRES_PER_INCH = 0.0254
_MAX_SIDE_PX = {"PNG": (1 << 31) - 1, "TIFF": (1 << 32) - 1, "JPEG": 65500, "WEBP": 16383}  # libjpeg's, libwebp's
_MAX_SIDE_PX |= {"HEIF": 8192}  # HEVC's level 6.2: x265 refuses more
_JPEG_SEGMENT_BYTES = 65533  # a segment's 16-bit length counts itself
_JPEG_EXIF_BYTES = _JPEG_SEGMENT_BYTES - len(b"Exif\0\0")
_JPEG_XMP_BYTES = _JPEG_SEGMENT_BYTES - len(b"http://ns.adobe.com/xap/1.0/\0")
_PNG_COMPRESSION = 3  # 12 megapixels in 0.9 s; level 6 takes 2.1 s for 3 % less
_FULL_CHROMA_QUALITY = 90  # from here on JPEG keeps colour at full resolution


@dataclass(frozen=True)
class Metadata:
    """What travels with the pixels; None or empty: nothing.

    ``keeps_video_claims``: a video belongs to the file that is written, as EXIF and XMP say. ``gain_map``: a JPEG that
    follows the picture in its file, of which XMP says so.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution_dpi: tuple[float, float] | None = None
    keeps_video_claims: bool = False
    gain_map: bytes = b""
    text: Mapping[str, str] = field(default_factory=dict)


def format_of(path: str | os.PathLike[str]) -> str:
    """PNG, JPEG, TIFF, WEBP or HEIF by the file name's suffix.

    Raises:
        UsageError: it is none of theirs, or HEIF and nothing is installed that can write it.
    """
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 - takes any path-like
    if suffix not in FORMATS:
        problem = f"ends in '{suffix}', which is not an image format that can be written" if suffix else "has no suffix"
        raise UsageError(f"{os.fspath(path)}: the name {problem}", fix=f"use one of {', '.join(FORMATS)}")
    if FORMATS[suffix] == "HEIF" and not heif.can_write():
        message = (
            f"{os.fspath(path)}: HEIC is written by the package pillow-heif with an HEVC encoder, which is not here"
        )
        raise UsageError(message, fix="pip install 'livemoments-deploy[livephoto]', or write a .jpg or .png")
    return FORMATS[suffix]


def encode(
    path: str | os.PathLike[str], pixels: np.ndarray, metadata: Metadata, quality: int
) -> tuple[bytes, tuple[str, ...]]:
    """Encode for the format of the path's suffix.

    Args:
        path: names the file in errors; its suffix decides.
        pixels: (H, W, 3) RGB, uint8, or uint16 for PNG and TIFF.
        metadata: EXIF is made upright, of this size and free of its thumbnail; XMP becomes a still's.
        quality: the quality of a JPEG, WebP or HEIC file, 1 to 100.

    Returns:
        The file's bytes, and the names of the metadata it could not hold: ``exif`` and ``xmp`` (malformed, or above
        64 KB in a JPEG), ``resolution`` (in a TIFF or WebP, where EXIF states none).

    Raises:
        OutputError: the picture is larger than the format allows.
        UsageError: a text item that PNG cannot hold; a gain map for a file that is no JPEG.
    """
    name = format_of(path)
    if metadata.gain_map and name != "JPEG":
        raise UsageError(f"{os.fspath(path)}: gain maps are written to JPEG only", fix="use the suffix .jpg")
    size = Size(*pixels.shape[:2])
    if max(size.height, size.width) > _MAX_SIDE_PX[name] or (
        name == "TIFF" and pixels.nbytes > tiff_tags.MAX_PIXEL_BYTES
    ):
        fix = "write a PNG" if name == "TIFF" else "write a PNG or a TIFF"
        raise OutputError(path, f"{size} is larger than {name} allows", fix=fix)
    pixels = np.ascontiguousarray(pixels)
    exif, is_exif_lost = _exif(name, size, metadata)
    icc, xmp = metadata.icc_profile or None, metadata.xmp or None
    if xmp is not None and not metadata.keeps_video_claims and not metadata.gain_map:
        xmp = xmp_packet.make_still(xmp)
    if name == "JPEG" and xmp is not None and len(xmp) > _JPEG_XMP_BYTES:
        xmp = None
    dpi = metadata.resolution_dpi
    lost = ("exif",) * is_exif_lost + ("xmp",) * bool(metadata.xmp and xmp is None)
    if name == "PNG":
        return _encode_png(pixels, icc, exif, xmp, dpi, metadata.text), lost
    if name in _WITHOUT_RESOLUTION and dpi is not None and not tiff_tags.has_resolution(exif):
        lost += ("resolution",)
    if name == "TIFF":
        return tiff_tags.encode_tiff(pixels, icc_profile=icc, exif=exif, xmp=xmp), lost
    held = {"icc_profile": icc, "exif": exif, "xmp": xmp, "dpi": dpi if name == "JPEG" else None}
    encoded = _encode_lossy(name, pixels, quality, held)
    if metadata.gain_map:
        version = segment(0xE2, ISO_PREFIX + bytes(4))  # of the photo only: the values are the map's
        encoded = append_picture(insert_segments(encoded, [version]), metadata.gain_map)
    return encoded, lost


def _exif(name: str, size: Size, metadata: Metadata) -> tuple[bytes | None, bool]:
    """The edited block with the text items, and whether the one that was given had to be left out."""
    given = (metadata.exif or b"").removeprefix(b"Exif\0\0") or None
    text = metadata.text if name != "PNG" else {}
    if given is not None:
        try:
            before = tiff_tags.user_comment(given)
            keeps = metadata.keeps_video_claims
            comment = _comment("", text) or "" if is_video_mark(before) else _comment(before, text)
            if keeps and is_video_mark(before):
                comment = before  # OPPO's gallery reads nothing else there
            edited = tiff_tags.edit_exif(given if keeps else without_video_link(given), size=size, comment=comment)
        except tiff_tags.TiffError:
            edited = None
        if edited is not None and (name != "JPEG" or len(edited) <= _JPEG_EXIF_BYTES):
            return edited, False
    return tiff_tags.edit_exif(None, size=size, comment=_comment("", text)), given is not None


def _comment(before: str, text: Mapping[str, str]) -> str | None:
    if not text:
        return None
    return json.dumps(({"UserComment": before} if before else {}) | dict(text), ensure_ascii=False)


def _encode_png(
    pixels: np.ndarray,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
    text: Mapping[str, str],
) -> bytes:
    chunks = [png_chunks.icc_chunk(icc)] if icc else []
    chunks += [png_chunks.resolution_chunk(*(round(value / _METRES_PER_INCH) for value in dpi))] if dpi else []
    chunks += [png_chunks.exif_chunk(exif)] if exif else []
    chunks += [png_chunks.xmp_chunk(xmp)] if xmp else []
    chunks += png_chunks.text_chunks(text)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return png_chunks.insert(
        cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION])[1].tobytes(), chunks
    )


def _encode_lossy(name: str, pixels: np.ndarray, quality: int, metadata: Mapping[str, Any]) -> bytes:
    options = {"subsampling": "4:4:4"} if name == "JPEG" and quality >= _FULL_CHROMA_QUALITY else {}
    held = {key: value for key, value in metadata.items() if value}
    if "exif" in held:
        held["exif"] = b"Exif\0\0" + held["exif"]
    stream = io.BytesIO()
    if name == "HEIF":
        heif.register()
        options = {"subsampling": "4:2:0"}  # what phones decode: HEVC's Main profile
    Image.fromarray(pixels).save(stream, name, quality=quality, **options, **held)
    return stream.getvalue()


def to_bit_depth(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Between 8 and 16 bit: times 257, or divided by it and rounded to the nearest level."""
    if bits == 8 * pixels.dtype.itemsize:
        return pixels
    if bits == 16:
        return pixels.astype(np.uint16) * np.uint16(257)
    table = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    return table[pixels]
