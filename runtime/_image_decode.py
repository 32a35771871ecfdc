"""Image files' bytes to upright RGB pixels: formats, modes, bit depths, orientation, colour.

Pillow identifies and decodes every file, so damage shows. It has no 16-bit RGB mode and drops the low byte silently:
16-bit PNG and TIFF pixels come from OpenCV, and are compared with Pillow's high bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
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
from livemoments.runtime import _png, _tiff, _xmp
from livemoments.runtime._damage import container, find_damage

MAX_PIXELS = 400_000_000  # above every camera's photo (200 megapixels); 2.4 GB at 16 bit
_READABLE = "use a PNG, JPEG, TIFF or WebP file"
_DECODERS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "HEIF")
"""Pillow's names of the documented formats: no other of its decoders is started (EPS would run Ghostscript)."""
_AGAIN = "copy or download the file again"
_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one file holds: (H, W, 3) uint8 or uint16 pixels, upright RGB, and the metadata that belongs to them."""

    pixels: np.ndarray
    icc_profile: bytes | None
    exif: bytes | None
    xmp: bytes | None
    format: str


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
    if kind == "HEIC" and not _register_heif():
        raise ImageError(path, "HEIC needs the package pillow-heif", fix="pip install pillow-heif, or convert to PNG")
    try:
        with _pixel_limit():
            if kind == "TIFF":
                return _decode_tiff(path, data)
            with _open(path, data) as image:
                return _decode_image(path, image, data, _orientation(image))
    except (ImageError, ResourceError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"too large: {error}", fix="scale it down, or cut it into parts") from None
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
    orientation = _tiff.get_number(data, _tiff.ORIENTATION, 1)
    data = _tiff.set_number(data, _tiff.ORIENTATION, 1)
    is_inverted = _is_deep_tiff(path, data) and _tiff.get_number(data, _tiff.PHOTOMETRIC, 1) == 0
    if is_inverted:
        data = _tiff.set_number(data, _tiff.PHOTOMETRIC, 1)
    with _open(path, data) as image:
        decoded = _decode_image(path, image, data, orientation)
    return dataclasses.replace(decoded, pixels=65535 - decoded.pixels) if is_inverted else decoded


def _decode_image(path: str | os.PathLike[str], image: Image.Image, data: bytes, orientation: int) -> Decoded:
    if getattr(image, "is_animated", False):
        image.seek(0)
    exif, xmp = _exif(image, data), image.info.get("xmp")  # before load(), which may close the file
    name = image.format or "unknown"
    icc = image.info.get("icc_profile") or None
    image.load()
    is_deep = (name == "PNG" and _png.bit_depth(data) == 16) or (name == "TIFF" and _is_deep_tiff(path, data))
    if is_deep and not image.mode.startswith("I"):
        pixels = _deep_pixels(path, image, data)
    else:
        pixels, icc = _to_rgb(path, image, icc)
    if icc is not None and icc[16:20] != b"RGB ":  # the profile's colour space: a grey one does not fit RGB pixels
        icc = None
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return Decoded(turn(pixels, orientation), icc, exif, _xmp.make_upright(xmp) if xmp else None, name)


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
def _pixel_limit() -> Iterator[None]:
    """Pillow's own limit is one global number, and warns at half of it: replaced while a file is being read."""
    with _pillow_limit_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow raises above twice its limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open(path: str | os.PathLike[str], data: bytes) -> Image.Image:
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in _DECODERS if name in Image.OPEN])
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        message = f"too large: {width}x{height} pixels; the limit is {MAX_PIXELS}"
        raise ImageError(path, message, fix="scale it down, or cut it into parts")
    return image


def _register_heif() -> bool:
    try:
        plugin = importlib.import_module("pillow_heif")  # not a dependency: HEIC's codecs carry patents
    except ImportError:
        return False
    plugin.register_heif_opener()
    return True


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block says nothing; Pillow raises SyntaxError, struct.error and others for one
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif(image: Image.Image, data: bytes) -> bytes | None:
    """The EXIF block without its prefix, its orientation set to 1; None if there is none or it is broken."""
    try:
        if image.format == "TIFF":
            return _tiff.extract_exif(data)
        block = image.info.get("exif")
        if block is None and "Raw profile type exif" in image.info:  # how PNGs held EXIF before 2017
            block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        return _tiff.set_number(block.removeprefix(b"Exif\0\0"), _tiff.ORIENTATION, 1) if block else None
    except ValueError:
        return None


def _is_deep_tiff(path: str | os.PathLike[str], data: bytes) -> bool:
    """Whether the first page has 16-bit unsigned grey or RGB samples."""
    tiff = _tiff.Tiff(data)
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
    encoded = np.frombuffer(_png.only_pixels(data) if image.format == "PNG" else data, np.uint8)
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
    [0, 1], or as [0, 255] or [0, 65535] where their largest value says so, and become 16 bit.
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
    top = float(plane.max())
    full_scale = next((limit for limit in (1.0, 255.0) if top <= limit), 65535.0)
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
