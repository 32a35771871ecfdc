"""The parts of Live Photos that networks are tried on."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np

from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.photo import MIN_SIDE_PX, Photo
from livemoments.types import Size


def centre(live: LivePhoto[Photo], tile: Size) -> LivePhoto[Photo]:
    """The middle of the pictures, one tile large, or as large as the least frame asks; smaller ones stay."""
    photo, frame = live.photo.size, live.frame.size
    least_px = math.ceil(MIN_SIDE_PX * photo.height / frame.height)
    tile = Size(max(tile.height, least_px), max(tile.width, least_px))
    if photo.height <= tile.height and photo.width <= tile.width:
        return live
    scale = photo.height / frame.height
    small = Size(_part(tile.height, scale, frame.height), _part(tile.width, scale, frame.width))
    y, x = (frame.height - small.height) // 2, (frame.width - small.width) // 2
    large = Size(min(tile.height, photo.height), min(tile.width, photo.width))
    top = min(round(y * scale), photo.height - large.height)
    left = min(round(x * scale), photo.width - large.width)
    inner = (slice(y, y + small.height), slice(x, x + small.width))
    outer = (slice(top, top + large.height), slice(left, left + large.width))
    return replace(
        live,
        frame=_cut(live.frame, inner),
        photo=_cut(live.photo, outer),
        photo_frame=None if live.photo_frame is None else _cut(live.photo_frame, inner),
        truth=None if live.truth is None else _cut(live.truth, outer),
    )


def pixels_sha256(live: LivePhoto[Photo]) -> str:
    """SHA-256 of the pixels."""
    digest = hashlib.sha256()
    for image in live.parts().values():
        array = image.pixels
        digest.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _part(tile_px: int, scale: float, frame_px: int) -> int:
    return max(1, min(round(tile_px / scale), frame_px))


def _cut(photo: Photo, window: tuple[slice, slice]) -> Photo:
    return replace(photo, pixels=np.ascontiguousarray(photo.pixels[window]))
