"""Image files in and out: photos with their bit depth, colour profile, EXIF and XMP.

How files become pixels is in ``_image_decode``, how pixels become files in ``_image_encode``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livemoments.errors import ImageError, UsageError
from livemoments.pixel_limit import MAX_PIXELS
from livemoments.runtime.image_files.decode import decode
from livemoments.runtime.image_files.encode import DEEP_FORMATS, Metadata, encode, format_of, to_bit_depth
from livemoments.store.files import check_file, write_file
from livemoments.types import Size

__all__ = [
    "ASPECT_TOLERANCE",
    "MAX_PIXELS",
    "MIN_SIDE_PX",
    "Photo",
    "check_pair_sizes",
    "decode_photo",
    "ensure_writable",
    "read_image_bytes",
    "read_photo",
    "write_image",
]

MIN_SIDE_PX = 64  # below this there are too few latent pixels for the motion encoder's four halvings
ASPECT_TOLERANCE = 0.01  # relative: rounding video sizes to even numbers stays below, 16:9 against 4:3 does not
_MAX_FILE_BYTES = 1 << 32  # an uncompressed 16-bit photo of MAX_PIXELS is 1.5 GB: larger files are no photos


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and what its file said about it.

    Attributes:
        pixels: (H, W, 3) uint8 or uint16, RGB, upright (the EXIF orientation is applied).
        icc_profile: the profile that belongs to the pixels; None: sRGB.
        exif: the EXIF block from its TIFF header on (no ``Exif\\0\\0``), orientation 1.
        xmp: the XMP packet, without an orientation.
        path: where it was read from.
        format: Pillow's name of the file's format, e.g. PNG, JPEG, TIFF, WEBP.
        resolution_dpi: dots per inch, across and down, that a PNG's or JPEG's header states.
        not_read: metadata that the file holds and this project does not carry: ``iptc``.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    path: Path | None = None
    format: str = "PNG"
    resolution_dpi: tuple[float, float] | None = None
    not_read: tuple[str, ...] = ()

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return Size(*self.pixels.shape[:2])

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return 8 * self.pixels.dtype.itemsize

    def unit(self) -> np.ndarray:
        """The pixels as (H, W, 3) float32 in [0, 1]: divided by 255 or 65535."""
        floats = self.pixels.astype(np.float32)
        floats /= np.float32(np.iinfo(self.pixels.dtype).max)
        return floats


def read_photo(path: str | os.PathLike[str]) -> Photo:
    """Read an image file.

    PNG, JPEG (MPO too), TIFF, WebP and HEIC are read, whatever the suffix. PNG and TIFF keep 16 bits; all else becomes
    8 bit. Alpha is dropped and the colours under it kept. Animations and multi-page files give their first picture.
    CMYK, Lab and grey-profiled pictures are converted to sRGB through their profile. A colour space that is stated
    otherwise (PNG's cICP, HEIC's nclx, Adobe RGB in EXIF) becomes the profile it stands for. HEIC needs pillow-heif.

    Raises:
        ImageError: there is no such file; it is a folder, empty, not an image, damaged, cut short, above
            ``MAX_PIXELS``, HDR, or of a kind that cannot be read.
        ResourceError: memory ran out.
    """
    return decode_photo(path, read_image_bytes(path))


def decode_photo(path: str | os.PathLike[str], data: bytes) -> Photo:
    """A photo from its file's bytes, wherever they came from; ``path`` says so in errors. See :func:`read_photo`.

    Raises:
        ImageError: they are no image, or a damaged one, one that is cut short, too large, or of an unknown kind.
        ResourceError: memory ran out.
    """
    decoded = decode(path, data)
    return Photo(
        decoded.pixels,
        decoded.icc_profile,
        decoded.exif,
        decoded.xmp,
        Path(path),
        decoded.format,
        decoded.resolution_dpi,
        decoded.not_read,
    )


def read_image_bytes(path: str | os.PathLike[str]) -> bytes:
    """An image file's bytes, undecoded.

    Raises:
        ImageError: there is no such file, it is a folder, empty, cannot be read, or is larger than any photo.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise ImageError(file, "is a folder, not an image", fix="name one image file")
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(file, "is a pipe or a device, not an image file", fix="name one image file")
        size = status.st_size
        if size > _MAX_FILE_BYTES:
            raise ImageError(file, f"is {size / 1e9:.1f} GB large, which no photo is", fix="name an image file")
        data = file.read_bytes()
    except FileNotFoundError:
        raise ImageError(file, "no such file", fix="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(file, f"cannot be read ({reason})", fix="check the path and its permissions") from None
    if not data:
        raise ImageError(file, "is empty (0 bytes)", fix="copy or download the file again")
    return data


def check_pair_sizes(frame: Photo, photo: Photo, photo_frame: Photo | None = None) -> None:
    """Check that a video frame, the photo and the video frame at the photo's instant fit each other.

    Raises:
        ImageError: a side is below ``MIN_SIDE_PX``; ``photo_frame`` is not of ``frame``'s size; the frame's aspect
            ratio is off the photo's by more than ``ASPECT_TOLERANCE``; the frame is larger than the photo.
    """
    for role, image in (("frame", frame), ("photo", photo), ("photo frame", photo_frame)):
        if image is not None and min(image.size.height, image.size.width) < MIN_SIDE_PX:
            message = f"the {role} is {image.size} pixels; both sides must be at least {MIN_SIDE_PX}"
            raise ImageError(_name(image, role), message, fix="use a larger image")
    both = f"the frame is {frame.size}, the photo is {photo.size}"
    deviation = abs(_aspect(frame) / _aspect(photo) - 1)
    if deviation > ASPECT_TOLERANCE:
        turned = abs(1 / _aspect(frame) / _aspect(photo) - 1) <= ASPECT_TOLERANCE
        raise ImageError(
            _name(frame, "frame"),
            f"the aspect ratios differ by {deviation:.1%}: {both}",
            fix="rotate the frame by 90 degrees" if turned else "crop the photo or the frame to the same field of view",
        )
    if frame.size.height > photo.size.height or frame.size.width > photo.size.width:
        fix = "swap --frame and --photo: the photo is the larger image"
        raise ImageError(_name(frame, "frame"), f"larger than the photo: {both}", fix=fix)
    if photo_frame is not None and photo_frame.size != frame.size:
        message = f"the photo frame is {photo_frame.size}, the frame is {frame.size}; they must be equal"
        raise ImageError(_name(photo_frame, "photo frame"), message, fix="take both frames from the same video")


def _aspect(image: Photo) -> float:
    return image.size.width / image.size.height


def _name(image: Photo, role: str) -> str | Path:
    return image.path or f"<{role}>"


def write_image(
    path: str | os.PathLike[str],
    pixels: np.ndarray,
    *,
    like: Photo | None = None,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
    bit_depth: int | None = None,
    quality: int = 95,
    text: Mapping[str, str] | None = None,
    trailer: bytes = b"",
    keeps_video_claims: bool = False,
    gain_map: bytes = b"",
) -> tuple[str, ...]:
    """Write an image file, complete or not at all; the suffix decides the format.

    EXIF is carried with orientation 1, the new size and without its thumbnail. EXIF and XMP are carried without claims
    of a motion photo's video or of a gain map, unless the output gets one.

    Args:
        path: ends in .png, .jpg, .jpeg, .tif, .tiff, .webp or .heic; missing folders are made.
        pixels: (H, W, 3) RGB, uint8 or uint16.
        like: the photo whose profile, EXIF and XMP are carried over.
        icc_profile: instead of ``like``'s; ``b""``: none.
        exif: instead of ``like``'s; ``b""``: none. With or without ``Exif\\0\\0``.
        xmp: instead of ``like``'s; ``b""``: none.
        bit_depth: 8 or 16; by default the pixels' own where the format has it (JPEG, WebP and HEIC: 8).
        quality: the quality of a JPEG, WebP or HEIC file, 1 to 100.
        trailer: follows the picture in its file: a Motion Photo's video.
        keeps_video_claims: EXIF and XMP go on saying that a video belongs to the picture, since one does.
        gain_map: a JPEG's gain map, itself a JPEG (:mod:`livemoments.runtime.image_files.gain_map`); XMP says of it.
        text: how the picture was made, say: to iTXt chunks in PNG, to EXIF's UserComment (JSON) elsewhere.

    Returns:
        What the file could not hold or was malformed and left out: ``"exif"``, ``"xmp"``, ``"resolution"``, and what
        ``like`` held that is never carried: ``"iptc"``; empty as a rule.

    Raises:
        UsageError: the suffix, the pixels, the bit depth, the quality or a text item cannot be used.
        OutputError: the place cannot be written, the disk is full, or the picture is larger than the format allows.
    """
    name = format_of(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0 or pixels.dtype not in (np.uint8, np.uint16):
        raise UsageError(f"pixels are {pixels.shape} {pixels.dtype}; (H, W, 3) uint8 or uint16 can be written")
    if bit_depth not in (None, 8, 16) or (bit_depth == 16 and name not in DEEP_FORMATS):
        raise UsageError(f"{os.fspath(path)}: {name} has no {bit_depth}-bit RGB", fix="use 8, or 16 with PNG or TIFF")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not between 1 and 100")
    own_bits = 8 * pixels.dtype.itemsize
    pixels = to_bit_depth(pixels, bit_depth or (own_bits if name in DEEP_FORMATS else 8))
    metadata = Metadata(
        icc_profile=like.icc_profile if icc_profile is None and like else icc_profile,
        exif=like.exif if exif is None and like else exif,
        xmp=like.xmp if xmp is None and like else xmp,
        resolution_dpi=like.resolution_dpi if like else None,
        keeps_video_claims=keeps_video_claims,
        gain_map=gain_map,
        text=text or {},
    )
    data, lost = encode(path, pixels, metadata, quality)
    write_file(path, data + trailer if trailer else data)
    return (*lost, *like.not_read) if like else lost


def ensure_writable(path: str | os.PathLike[str]) -> None:
    """Check before long work that an image can be written at this place; leaves nothing there.

    Raises:
        UsageError: the suffix is not one that :func:`write_image` knows.
        OutputError: a file cannot be written there.
    """
    format_of(path)
    check_file(path)
