"""Pictures for the tests of restoring: a photo, a shifted video frame, and the frame at the photo's instant."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from livemoments.runtime.image_files.photo import Photo
from livemoments.types import Size

SIZE = Size(160, 208)
VIDEO = Size(80, 104)


def textured(size: Size, seed: int, dtype: Any = np.uint8) -> np.ndarray:
    """(H, W, 3) of smooth random colours."""
    top = np.iinfo(dtype).max
    coarse = np.random.default_rng(seed).random((size.height // 8, size.width // 8, 3)).astype(np.float32)
    fine = cv2.resize(coarse, (size.width, size.height), interpolation=cv2.INTER_LINEAR)
    return np.rint(fine * top).astype(dtype)


def shrunk(pixels: np.ndarray, size: Size, shift_px: int = 0) -> np.ndarray:
    small = cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(np.roll(small, shift_px, axis=1))


PHOTO = Photo(textured(SIZE, 1))
KEY_FRAME = Photo(shrunk(PHOTO.pixels, VIDEO))
FRAME = Photo(shrunk(PHOTO.pixels, VIDEO, shift_px=2))


def difference(found: np.ndarray, wanted: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())
