"""Colour profiles of images that are combined: the video frames are brought to the key photo's.

The result carries the photo's ICC profile while its low frequencies come from the frame (the colour fix), so a frame
of another profile would shift every colour. Conversion is relative colorimetric with black point compensation, by
littlecms through Pillow, which has 8 bits per channel only.
"""

from __future__ import annotations

import dataclasses
import functools
import io

import numpy as np
from PIL import Image, ImageCms

from livemoments.runtime.image_files.encode import to_bit_depth
from livemoments.runtime.image_files.photo import Photo

SAME = "same"
CONVERTED = "converted"
CONVERTED_8_BIT = "converted, through 8 bits"
UNREADABLE = "unreadable, taken as sRGB"
IMPOSSIBLE = "not converted: the profiles cannot be combined"

_GRID_LEVELS = np.linspace(0, 255, 18).round().astype(np.uint8)
_ROUNDING_LEVELS = 1  # of 255: two encodings of one colour space differ by no more
_SRGB_NAME = "none: sRGB"


def match_profile(image: Photo, photo: Photo) -> tuple[Photo, str]:
    """Bring an image to the photo's colour profile.

    No profile counts as sRGB, and so does one that cannot be read. Where the two profiles are equal, or one maps every
    colour to itself in the other within one of 255 levels, the pixels are left as they are. A 16-bit image that has to
    be converted becomes 8 bit.

    Args:
        image: (H, W, 3), 8 or 16 bit.
        photo: the photo; the result has its profile.

    Returns:
        The image with the photo's profile, and what was done: ``same``, ``converted``, ``converted, through 8 bits``;
        ``not converted: …`` where littlecms cannot combine the two; behind ``unreadable, taken as sRGB: `` where the
        image's own profile was so.
    """
    if image.icc_profile == photo.icc_profile:
        return image, SAME
    source, target = _open(image.icc_profile), _open(photo.icc_profile)
    note = f"{UNREADABLE}: " if source is None else ""
    converted, done = _convert(image, source or _srgb(), target or _srgb())
    return dataclasses.replace(converted, icc_profile=photo.icc_profile), note + done


def profile_name(icc_profile: bytes | None) -> str:
    """How results call a profile: its description; ``none: sRGB``; ``unreadable, taken as sRGB``."""
    if icc_profile is None:
        return _SRGB_NAME
    profile = _open(icc_profile)
    if profile is None:
        return UNREADABLE
    return (profile.profile.profile_description or "").strip() or "without a name"


def _convert(image: Photo, source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile) -> tuple[Photo, str]:
    try:
        transform = ImageCms.buildTransform(
            source,
            target,
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):  # a profile of one direction, e.g. a scanner's as the target
        return image, IMPOSSIBLE
    grid = _grid()
    if np.abs(_apply(transform, grid).astype(int) - grid).max() <= _ROUNDING_LEVELS:
        return image, SAME
    pixels = _apply(transform, to_bit_depth(image.pixels, 8))
    return dataclasses.replace(image, pixels=pixels), CONVERTED if image.bit_depth == 8 else CONVERTED_8_BIT


def _apply(transform: ImageCms.ImageCmsTransform, pixels: np.ndarray) -> np.ndarray:
    converted = transform.apply(Image.fromarray(pixels))
    return np.array(converted)


def _open(icc_profile: bytes | None) -> ImageCms.ImageCmsProfile | None:
    """The profile; sRGB for none; None where it cannot be read or is not for RGB pixels."""
    if icc_profile is None:
        return _srgb()
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        is_rgb = profile.profile.xcolor_space.strip() == "RGB"
        if is_rgb:  # a profile may open although what it needs is missing: that shows here
            ImageCms.buildTransform(profile, _srgb(), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return None
    return profile if is_rgb else None


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def _grid() -> np.ndarray:
    """Colours from the whole cube, as an image (N, N * N, 3)."""
    red, green, blue = np.meshgrid(_GRID_LEVELS, _GRID_LEVELS, _GRID_LEVELS, indexing="ij")
    count = len(_GRID_LEVELS)
    return np.stack([red, green, blue], axis=-1).reshape(count, count * count, 3)
