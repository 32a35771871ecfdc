"""The Live Photos that changed networks are tried on: read from a calibration set or simulated, and cut to a tile."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np

from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.quantize.calibrate.photos import read_set
from livemoments.runtime.image_files.photo import MIN_SIDE_PX, Photo, read_photo
from livemoments.simulated_clip import simulate_live_photo
from livemoments.types import Size


def read_trial_photos(
    folder: str | os.PathLike[str],
    limit: int,
    *,
    with_truth: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[LivePhoto[Photo]]:
    """Photos of a calibration folder.

    Real clips have no truth. For a budget of quality a clip is simulated from each key photo, whose moved view is the
    truth (:mod:`livemoments.simulated_clip`).

    Args:
        folder: the calibration set.
        limit: at most this many photos.
        with_truth: simulate the clips.
        seed: the seed of the simulated clips.
        progress: where to report.

    Raises:
        ImageError: the folder is no calibration set, or an image cannot be read.
        UsageError: the limit is below 1, or a photo is too small to simulate a clip from.
    """
    items = read_set(folder, limit=limit, progress=progress)
    if not with_truth:
        return [item.map(read_photo) for item in items]
    photos = []
    for number, item in enumerate(items):
        photo = read_photo(item.photo)
        pixels = photo.pixels if photo.bit_depth == 8 else np.rint(photo.pixels / 257).astype(np.uint8)
        photos.append(simulate_live_photo(pixels, seed=seed + number).map(Photo))
    return photos


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
    windows = {"frame": inner, "photo": outer, "photo_frame": inner, "truth": outer}
    cut: dict[str, Any] = {part: _cut(image, windows[part]) for part, image in live.parts().items()}
    return replace(live, **cut)


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
