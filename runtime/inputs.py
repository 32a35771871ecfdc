"""The images of one restoration, and the tiles cut from them.

Three images go in (UPSTREAM.md, "Files a user has"): the reselected video frame, the key photo, and the video frame at
the key photo's instant. Where the last one is missing it is derived from the photo.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np

from livemoments.runtime.image_files.colour_profiles import SAME, match_profile
from livemoments.runtime.image_files.photo import Photo, check_pair_sizes, read_photo
from livemoments.runtime.resize import BicubicView, PhotoView, WindowView
from livemoments.runtime.tiles.correspondence import ReferenceCorner
from livemoments.types import Size, Tile

DERIVED_JPEG_QUALITY = 60
"""JPEG quality of a derived key frame; about the blocking and ringing of a phone's video at 7 Mb/s."""

IGNORED = "ignored"
"""What becomes of the frames' colour profiles where they are not matched."""

ImageSource = str | os.PathLike[str] | Photo


@dataclass(frozen=True)
class RestoreInputs:
    """The images of one restoration.

    Attributes:
        frame: the reselected video frame, which is restored.
        photo: the key photo.
        photo_frame: the video frame at the photo's instant; of the frame's size.
        photo_frame_derived: whether it was made from the photo.
        frame_profile, photo_frame_profile: what was done to bring the two to the photo's colour profile
            (:func:`livemoments.runtime.image_files.colour_profiles.match_profile`).
        size: the result's size in pixels.
        frame_view, photo_view, photo_frame_view: the three at the result's size, [0, 1] before the resize's overshoots,
            reflected beyond their edges.
    """

    frame: Photo
    photo: Photo
    photo_frame: Photo
    photo_frame_derived: bool
    frame_profile: str
    photo_frame_profile: str
    size: Size
    frame_view: WindowView
    photo_view: WindowView
    photo_frame_view: WindowView


@dataclass(frozen=True)
class TileImages:
    """The three windows of one tile, each (3, h, w) float32 in [-1, 1]."""

    frame: np.ndarray
    photo: np.ndarray
    photo_frame: np.ndarray


def load_inputs(
    frame: ImageSource,
    photo: ImageSource,
    photo_frame: ImageSource | None = None,
    *,
    upscaled_size: Size | None = None,
    match_profiles: bool = True,
) -> RestoreInputs:
    """Read the images, check that they belong together, and bring the frames to the photo's colour profile.

    Args:
        frame: the reselected video frame: a path, or an image read already.
        photo: the key photo.
        photo_frame: the video frame at the photo's instant; ``None`` derives it (:func:`derive_photo_frame`).
        upscaled_size: the result's size where it is not the photo's (upstream's ``int(size * scale)``).
        match_profiles: upstream does not.

    Raises:
        ImageError: an image cannot be read, or their sizes do not fit.
    """
    frame, photo = _read(frame), _read(photo)
    given = None if photo_frame is None else _read(photo_frame)
    check_pair_sizes(frame, photo, given)
    frame_profile = key_profile = SAME if match_profiles else IGNORED
    if match_profiles:
        frame, frame_profile = match_profile(frame, photo)
        if given is not None:
            given, key_profile = match_profile(given, photo)
    key_frame = derive_photo_frame(photo, frame.size) if given is None else given
    size = upscaled_size or photo.size
    return RestoreInputs(
        frame=frame,
        photo=photo,
        photo_frame=key_frame,
        photo_frame_derived=given is None,
        frame_profile=frame_profile,
        photo_frame_profile=key_profile,
        size=size,
        frame_view=BicubicView(frame.pixels, size),
        photo_view=PhotoView(photo.pixels),
        photo_frame_view=BicubicView(key_frame.pixels, size),
    )


def derive_photo_frame(photo: Photo, size: Size) -> Photo:
    """Approximate the video frame at the photo's instant: area downscaling, then a JPEG round trip.

    The paper's appendix too degrades the key photo to get the flow's second image. A phone's video pipeline differs
    (its own tone curve, cropping, motion blur), so a real frame is better where there is one.

    Args:
        photo: the key photo.
        size: the video frames' size in pixels.

    Returns:
        An 8-bit image of that size, without metadata.
    """
    import cv2

    pixels = photo.pixels if photo.bit_depth == 8 else np.rint(photo.pixels / 257).astype(np.uint8)
    small = cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, DERIVED_JPEG_QUALITY]
    )
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded a line above
    pixels = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return replace(photo, pixels=pixels, icc_profile=None, exif=None, xmp=None, path=None, format="JPEG")


def cut_tile(inputs: RestoreInputs, tile: Tile, corner: ReferenceCorner) -> TileImages:
    """Cut a tile from the frame, and its reference (at the corner that PCR found) from the photo and the key frame."""
    return TileImages(
        frame=network_image(inputs.frame_view.window(tile.y, tile.x, tile.height, tile.width)),
        photo=network_image(inputs.photo_view.window(corner.y, corner.x, tile.height, tile.width)),
        photo_frame=network_image(inputs.photo_frame_view.window(corner.y, corner.x, tile.height, tile.width)),
    )


def network_image(unit: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> (3, H, W) float32 in [-1, 1], clamped there (bicubic resizing overshoots)."""
    scaled = unit.transpose(2, 0, 1) * np.float32(2) - np.float32(1)
    return np.ascontiguousarray(np.clip(scaled, -1, 1), dtype=np.float32)


def _read(image: ImageSource) -> Photo:
    return image if isinstance(image, Photo) else read_photo(image)
