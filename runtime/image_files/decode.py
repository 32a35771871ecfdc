"""Image files' bytes to upright RGB pixels: formats, modes, bit depths, orientation, colour.

Pillow identifies and decodes every file, so damage shows. It has no 16-bit RGB mode and drops the low byte silently:
16-bit PNG and TIFF pixels come from OpenCV, and are compared with Pillow's high bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from livemoments.errors import ImageError, ResourceError
from livemoments.pixel_limit import max_pixels
from livemoments.runtime.image_files import heif, png_chunks, tiff_tags, xmp_packet
from livemoments.runtime.image_files.colour_codes import ColourCodeError, adobe_rgb, profile_of_codes
from livemoments.runtime.image_files.integrity import container, find_damage
from livemoments.runtime.image_files.jpeg import find_warning

_TOO_LARGE = "scale it down, or say livemoments --max-pixels N COMMAND"
_READABLE = "use a PNG, JPEG, TIFF or WebP file"
_DECODERS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "HEIF")
"""Pillow's names of the documented formats: no other of its decoders is started (EPS would run Ghostscript)."""
_AGAIN = "copy or download the file again"
_PNG_XMP, _PNG_OLD_EXIF = "XML:com.adobe.xmp", "Raw profile type exif"
_PHOTOSHOP_IPTC, _TIFF_IPTC = 0x0404, 33723
_METRES_PER_INCH = 0.0254
_BRIGHT_PERCENT = 99.9
_FULL_SCALES = ((4.0, 1.0), (1024.0, 255.0))
"""Where a float picture's bright pixels end, and the full scale that it then has: highlights overshoot, and single
pixels by far, but a picture of 0 to 255 is not dark up to its brightest thousandth."""
_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one file holds: (H, W, 3) uint8 or uint16 pixels, upright RGB, and the metadata that belongs to them.

    ``not_read`` names metadata that the file holds and this project does not carry.
    """

    pixels: np.ndarray
    icc_profile: bytes | None
    exif: bytes | None
    xmp: bytes | None
    format: str
    resolution_dpi: tuple[float, float] | None = None
    not_read: tuple[str, ...] = ()


def decode(path: str | os.PathLike[str], data: bytes) -> Decoded:
    """Decode a file's bytes.

    Args:
        path: names the file in errors.
        data: all its bytes.

    Raises:
        ImageError: not an image, damaged, cut short, too large, or of a kind that cannot be read.
        ResourceError: memory ran out.
    """
    kind = container(data)
    if damage := find_damage(data):
        raise ImageError(path, f"this {kind} is damaged or cut short: {damage}", fix=_AGAIN)
    if kind == "HEIC" and not heif.register():
        raise ImageError(
            path,
            "HEIC needs the package pillow-heif",
            fix="pip install 'livemoments-deploy[livephoto]', or convert it to PNG",
        )
    try:
        with pillow_limit_off():
            if kind == "TIFF":
                return _decode_tiff(path, data)
            # Pillow ends at texts and profiles of more than 1 MiB: they are read here instead
            with _open(path, png_chunks.without_texts(data) if kind == "PNG" else data) as image:
                if kind == "JPEG" and (warning := find_warning(data)):
                    raise ImageError(path, f"this JPEG is damaged inside: {warning}", fix=_AGAIN)
                return _decode_image(path, image, data, orientation_of(image))
    except (ImageError, ResourceError):
        raise
    except UnidentifiedImageError:
        if kind is None:
            raise ImageError(path, "not an image that can be read", fix=_READABLE) from None
        message = f"starts like a {kind} but cannot be read: it is damaged, or of an unusual kind"
        raise ImageError(path, message, fix="save it again as an 8- or 16-bit PNG or TIFF") from None
    except MemoryError:
        raise ResourceError(f"not enough memory to read {os.fspath(path)}") from None
    except Exception as error:  # Pillow's plugins raise whatever a malformed file leads them to: OSError to TypeError
        raise ImageError(path, f"cannot be decoded ({error or type(error).__name__})", fix=_AGAIN) from error


def _decode_tiff(path: str | os.PathLike[str], data: bytes) -> Decoded:
    """What decoders do differently is taken out of the file and done here.

    Pillow turns TIFFs while it loads them and OpenCV turns some: with the orientation at 1 neither does. Both leave
    16-bit white-is-zero pixels as they are, and Pillow knows one byte order of them: they are read as black-is-zero.
    """
    orientation = tiff_tags.get_number(data, tiff_tags.ORIENTATION, 1)
    data = tiff_tags.set_number(data, tiff_tags.ORIENTATION, 1)
    is_inverted = _is_deep_tiff(path, data) and tiff_tags.get_number(data, tiff_tags.PHOTOMETRIC, 1) == 0
    if is_inverted:
        data = tiff_tags.set_number(data, tiff_tags.PHOTOMETRIC, 1)
    with _open(path, data) as image:
        decoded = _decode_image(path, image, data, orientation)
    return dataclasses.replace(decoded, pixels=65535 - decoded.pixels) if is_inverted else decoded


def _decode_image(path: str | os.PathLike[str], image: Image.Image, data: bytes, orientation: int) -> Decoded:
    if getattr(image, "is_animated", False):
        image.seek(0)
    name = image.format or "unknown"
    if name == "PNG":
        texts = png_chunks.texts(data)
        image.info |= {"xmp": texts.get(_PNG_XMP), "Raw profile type exif": texts.get(_PNG_OLD_EXIF)}
        image.info["icc_profile"] = png_chunks.profile(data)
    exif, xmp = _exif(image, data), image.info.get("xmp")  # before load(), which may close the file
    icc = _stated_profile(path, image, data, exif)
    resolution, not_read = _resolution(image, data), ("iptc",) * _has_iptc(image, data)
    image.load()
    is_deep = (name == "PNG" and png_chunks.bit_depth(data) == 16) or (name == "TIFF" and _is_deep_tiff(path, data))
    if is_deep and not image.mode.startswith("I"):
        pixels = _deep_pixels(path, image, data)
    else:
        pixels, icc = _to_rgb(path, image, icc)
    if icc is not None and icc[16:20] != b"RGB ":  # the profile's colour space: a grey one does not fit RGB pixels
        icc = None
    if isinstance(xmp, str):
        xmp = xmp.encode()
    xmp = xmp_packet.make_upright(xmp) if xmp else None
    return Decoded(turn(pixels, orientation), icc, exif, xmp, name, resolution, not_read)


def _stated_profile(path: str | os.PathLike[str], image: Image.Image, data: bytes, exif: bytes | None) -> bytes | None:
    """The pixels' ICC profile: what a PNG's cICP says before its iCCP, a HEIC's nclx and EXIF's Adobe RGB where there
    is no profile.

    Raises:
        ImageError: HDR, or a colour space that is not known.
    """
    icc = image.info.get("icc_profile") or None
    codes = png_chunks.colour_codes(data) if image.format == "PNG" else None
    nclx = image.info.get("nclx_profile")
    if codes is None and icc is None and isinstance(nclx, dict):
        codes = int(nclx.get("color_primaries", 2)), int(nclx.get("transfer_characteristics", 2))
    if codes is not None:
        try:
            return profile_of_codes(*codes)
        except ColourCodeError as error:
            fix = "export it in standard dynamic range, as sRGB or Display P3"
            raise ImageError(path, str(error), fix=fix) from None
    with contextlib.suppress(tiff_tags.TiffError):
        if icc is None and exif is not None and tiff_tags.is_adobe_rgb(exif):
            return adobe_rgb()
    return icc


def _resolution(image: Image.Image, data: bytes) -> tuple[float, float] | None:
    """Dots per inch, across and down, from PNG's pHYs or JPEG's JFIF header; EXIF carries its own."""
    if image.format == "PNG":
        metres = png_chunks.pixels_per_metre(data)
        return None if metres is None else (metres[0] * _METRES_PER_INCH, metres[1] * _METRES_PER_INCH)
    unit, density = image.info.get("jfif_unit"), image.info.get("jfif_density")
    if unit not in (1, 2) or not density or min(density) < 1:
        return None
    scale = 1.0 if unit == 1 else 2.54  # dots per inch, or per centimetre
    return density[0] * scale, density[1] * scale


def _has_iptc(image: Image.Image, data: bytes) -> bool:
    """Whether there are IPTC records (captions, credits): in a JPEG's or a TIFF's Photoshop block or tag."""
    if image.format == "TIFF":
        tiff = tiff_tags.Tiff(data)
        return _TIFF_IPTC in tiff.directory(tiff.first)[0]
    blocks = image.info.get("photoshop")
    return isinstance(blocks, dict) and _PHOTOSHOP_IPTC in blocks


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, C) upright by EXIF's orientation, 1 to 8 (Exif 2.32, tag 274); C-contiguous."""
    if orientation >= 5:  # rows and columns are swapped in 5 to 8
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@contextlib.contextmanager
def pillow_limit_off() -> Iterator[None]:
    """Pillow's own limit is one global number, and warns at half of it: off while a file is being read (ours holds)."""
    with _pillow_limit_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open(path: str | os.PathLike[str], data: bytes) -> Image.Image:
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in _DECODERS if name in Image.OPEN])
    width, height = image.size
    if width * height > max_pixels.get():
        image.close()
        message = f"too large: {width}x{height} pixels; the limit is {max_pixels.get():,}"
        raise ImageError(path, message, fix=_TOO_LARGE)
    return image


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where it is not stated, or EXIF is broken."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block says nothing; Pillow raises SyntaxError, struct.error and others for one
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif(image: Image.Image, data: bytes) -> bytes | None:
    """The EXIF block without its prefix, its orientation set to 1; None if there is none or it is broken."""
    try:
        if image.format == "TIFF":
            return tiff_tags.extract_exif(data)
        block = image.info.get("exif")
        old = image.info.get("Raw profile type exif")
        if block is None and old:  # how PNGs held EXIF before 2017
            block = bytes.fromhex("".join(old.decode("latin-1").split("\n")[3:]))
        return tiff_tags.set_number(block.removeprefix(b"Exif\0\0"), tiff_tags.ORIENTATION, 1) if block else None
    except ValueError:
        return None


def _is_deep_tiff(path: str | os.PathLike[str], data: bytes) -> bool:
    """Whether the first page has 16-bit unsigned grey or RGB samples."""
    tiff = tiff_tags.Tiff(data)
    entries, _ = tiff.directory(tiff.first)
    if tiff.number(entries.get(254)) & 1:
        message = "its first picture is a reduced-size preview: a camera's raw file?"
        raise ImageError(path, message, fix="develop it to a 16-bit TIFF")
    sample_formats = set(tiff.numbers(entries.get(339))) or {1}
    return (
        set(tiff.numbers(entries.get(258))) == {16}
        and sample_formats == {1}
        and tiff.number(entries.get(262)) in (0, 1, 2)
    )


def _deep_pixels(path: str | os.PathLike[str], image: Image.Image, data: bytes) -> np.ndarray:
    """16-bit pixels by OpenCV, alpha dropped; their high bytes must be what Pillow decoded."""
    encoded = np.frombuffer(png_chunks.only_pixels(data) if image.format == "PNG" else data, np.uint8)
    try:
        decoded = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        decoded = None
    if decoded is not None and decoded.dtype == np.uint16:
        rgb = cv2.cvtColor(decoded, cv2.COLOR_GRAY2RGB) if decoded.ndim == 2 else decoded[..., 2::-1]
        if rgb.shape[:2] == (image.height, image.width):
            high_bytes = np.right_shift(rgb, 8).astype(np.uint8)
            if np.array_equal(high_bytes, np.asarray(image.convert("RGB"))):
                return rgb
    message = f"this kind of 16-bit {image.format} cannot be read faithfully"
    raise ImageError(path, message, fix="save it again as a 16-bit RGB PNG or TIFF without alpha")


def _to_rgb(path: str | os.PathLike[str], image: Image.Image, icc: bytes | None) -> tuple[np.ndarray, bytes | None]:
    """Any of Pillow's modes as RGB pixels, with the profile that still belongs to them.

    Alpha is dropped and the colours under it kept (nothing is composited). CMYK, Lab and grey with a grey profile go
    to sRGB through the profile where it can be used. 16- and 32-bit integers become 16 bit. Floats are taken as
    [0, 1], or as [0, 255] or [0, 65535] where their bright pixels say so, clipped, and become 16 bit.
    """
    mode = image.mode
    if mode.startswith("I"):  # I;16 and its byte orders, I: integers of 32 bits
        return _grey(np.asarray(image).clip(0, 65535).astype(np.uint16)), icc
    if mode == "F":
        return _grey(_unit_to_16_bit(path, np.asarray(image))), icc
    is_grey_profiled = mode in ("1", "L", "LA") and icc is not None and icc[16:20] == b"GRAY"
    if mode in ("CMYK", "LAB") or is_grey_profiled:
        flat = image if mode in ("CMYK", "LAB") else image.convert("L")
        if converted := _through_profile(flat, icc):
            return np.asarray(converted), None
        icc = None
    if mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB")), icc


def _grey(plane: np.ndarray) -> np.ndarray:
    return np.repeat(plane[..., None], 3, axis=2)


def _unit_to_16_bit(path: str | os.PathLike[str], plane: np.ndarray) -> np.ndarray:
    if not np.isfinite(plane).all():
        raise ImageError(path, "holds infinite values or NaN", fix="save it as a 16-bit PNG or TIFF")
    top = float(np.percentile(plane, _BRIGHT_PERCENT))
    full_scale = next((scale for limit, scale in _FULL_SCALES if top <= limit), 65535.0)
    return np.rint(plane.astype(np.float64).clip(0, full_scale) * (65535 / full_scale)).astype(np.uint16)


def _through_profile(image: Image.Image, icc: bytes | None) -> Image.Image | None:
    """To sRGB, relative colorimetric; None where the profile is missing or does not fit."""
    if image.mode != "LAB" and icc is None:
        return None
    source = ImageCms.createProfile("LAB") if image.mode == "LAB" else io.BytesIO(icc or b"")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    try:
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
