"""Image files made by hand, and what they should hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

from livemoments.errors import ImageError
from livemoments.runtime.image_files import png_chunks
from livemoments.runtime.image_files.photo import Photo, read_photo

SUFFIXES = (".png", ".jpg", ".tif", ".webp")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="k\xc3\xa4mera"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def noise(seed: int, height: int = 37, width: int = 53, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def smooth(height: int = 96, width: int = 128, dtype: type = np.uint8) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    planes = np.stack([x / width, y / height, (x + y) / (width + height)], axis=2)
    return (planes * np.iinfo(dtype).max).astype(dtype)


def camera_exif(orientation: int = 1) -> bytes:
    """An EXIF block as a camera's: IFD0, EXIF and GPS directories, a binary maker note."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Examplecam"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.XResolution] = 72.0
    inner = {
        ExifTags.Base.ExposureTime: 0.008,
        ExifTags.Base.LensModel: "50 mm",
        ExifTags.Base.MakerNote: bytes(range(200)),
        ExifTags.Base.ExifImageWidth: 4000,
        ExifTags.Base.ExifImageHeight: 3000,
    }
    exif.get_ifd(ExifTags.IFD.Exif).update(inner)
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (47, 0, 1)})
    return exif.tobytes()


def parsed(exif: bytes | None) -> tuple[dict, dict, dict]:
    assert exif is not None
    found = Image.Exif()
    found.load(exif)
    return dict(found), found.get_ifd(ExifTags.IFD.Exif), found.get_ifd(ExifTags.IFD.GPSInfo)


def png16(samples: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG of any colour type, written without any library."""
    height, width = samples.shape[:2]
    header = png_chunks._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return b"".join(
        [
            png_chunks.SIGNATURE,
            header,
            *chunks,
            png_chunks._chunk(b"IDAT", zlib.compress(rows)),
            png_chunks._chunk(b"IEND", b""),
        ]
    )


def tiff16(samples: np.ndarray, order: str, photometric: int, orientation: int = 1, planar: int = 1) -> bytes:
    """An uncompressed 16-bit TIFF with its directory first, written without the code under test."""
    height, width, channels = samples.shape
    stored = samples if planar == 1 else samples.transpose(2, 0, 1)
    body = stored.astype(order + "u2").tobytes()
    planes = 1 if planar == 1 else channels
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [16] * channels), 259: ("H", [1]),
        262: ("H", [photometric]), 273: ("I", [0] * planes), 274: ("H", [orientation]), 277: ("H", [channels]),
        278: ("I", [height]), 279: ("I", [len(body) // planes] * planes), 284: ("H", [planar]),
    }  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    sizes = {tag: struct.calcsize("<" + str(len(v)) + c) for tag, (c, v) in tags.items()}
    pixels_at = start + sum(n + n % 2 for n in sizes.values() if n > 4)
    tags[273] = ("I", [pixels_at + i * (len(body) // planes) for i in range(planes)])
    lines, extra = b"", b""
    for tag, (code, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            field = struct.pack(order + "I", start + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
        else:
            field = packed.ljust(4, b"\0")
        lines += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[code], len(values)) + field
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "IH", 8, len(tags)) + lines + b"\0\0\0\0"
    return head + extra + body


def read_or_error(path: Path) -> Photo | ImageError:
    try:
        return read_photo(path)
    except ImageError as error:
        return error
