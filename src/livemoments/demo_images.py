"""The demonstration's images: scikit-image's photograph with a simulated clip, or the user's own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from livemoments.errors import MissingExtraError
from livemoments.runtime.image_files.photo import Photo, check_pair_sizes, read_photo
from livemoments.simulated_clip import simulate_live_photo
from livemoments.types import Size

MOST_PX = 768
"""Longest side of a photograph of the user's own; a larger one is shrunk, for the demo's tiles are small."""
_CENTRE = (0.47, 0.5)
"""Middle of the part that the short demonstration restores, (y, x), as fractions."""


def load_images(photo: Path | None, frame: Path | None, *, part: Size | None = None) -> dict[str, np.ndarray]:
    """``photo`` and ``frame``, and where they are known ``photo_frame`` and ``truth``: (H, W, 3) uint8 RGB.

    Args:
        photo: a key photo of the user's own, instead of the embedded photograph.
        frame: the video frame; without it, one is simulated from the photo.
        part: keep the middle of this size at most (of the photo; frames accordingly).

    Raises:
        ImageError: an image cannot be read, or they do not belong together.
        MissingExtraError: scikit-image, whose photograph is used, is not installed.
        UsageError: the photo is too small to simulate a clip from.
    """
    if photo is not None and frame is not None:
        key, clip = read_photo(photo), read_photo(frame)
        check_pair_sizes(clip, key)
        images = {"photo": _shrunk(key, MOST_PX), "frame": _shrunk(clip, MOST_PX // 2)}
    else:
        live = simulate_live_photo(embedded_photograph() if photo is None else _shrunk(read_photo(photo), MOST_PX))
        images = live.parts()
    return images if part is None else _middle(images, part)


def embedded_photograph() -> np.ndarray:
    """scikit-image's cup of coffee, which the small checkpoint was not trained on.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise MissingExtraError("the embedded photograph", "demo", missing="skimage") from None
    pixels: np.ndarray = data.coffee()
    return pixels


def _shrunk(photo: Photo, longest_px: int) -> np.ndarray:
    scale = min(1.0, longest_px / max(photo.size.height, photo.size.width))
    size = (round(photo.size.width * scale), round(photo.size.height * scale))
    pixels = photo.pixels if photo.bit_depth == 8 else (photo.unit() * 255).round().astype(np.uint8)
    return pixels if scale == 1.0 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _middle(images: dict[str, np.ndarray], part: Size) -> dict[str, np.ndarray]:
    """The same part of every image: whole pairs of the photo's pixels, so that a frame of half its size has it too."""
    height, width = images["photo"].shape[:2]
    tall, wide = (min(want, have) // 2 * 2 for want, have in ((part.height, height), (part.width, width)))
    top, left = (
        min(max(round(at * have - side / 2), 0), have - side) // 2 * 2
        for at, have, side in zip(_CENTRE, (height, width), (tall, wide), strict=True)
    )
    cut = {}
    for kind, pixels in images.items():
        scale = pixels.shape[0] / height
        rows, columns = (
            slice(round(start * scale), round((start + side) * scale)) for start, side in ((top, tall), (left, wide))
        )
        cut[kind] = np.ascontiguousarray(pixels[rows, columns])
    return cut
