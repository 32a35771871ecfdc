"""A small set that is always at hand: scikit-image's sample photographs as simulated Live Photos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from livemoments.errors import MissingExtraError, UsageError
from livemoments.runtime.image_files.photo import MIN_SIDE_PX, write_image
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.synlive.degradation import apply, image_rng, sample_degradation
from livemoments.validate.synlive.sources import moved_pair, with_margin

NAMES = ("astronaut", "coffee", "chelsea", "rocket")
"""The photographs, which scikit-image carries within its package (nothing is downloaded)."""
DEFAULT_SIZE = Size(256, 256)
PRESET = "live-photo"
_SCALE = 2


def write_embedded_set(
    folder: str | os.PathLike[str], *, size: Size = DEFAULT_SIZE, count: int = 3, seed: int = 0
) -> Path:
    """Write ``lr/``, ``ref/``, ``ref_lr/`` and ``gt/``, PNG files; the same arguments give the same pixels.

    Beyond four photos they come again, each time with another motion and degradation.

    Args:
        folder: where to; missing folders are made.
        size: of photos and truths in pixels, even sides; frames have half of it.
        count: photos.
        seed: of the motion, the degradation and the noise.

    Returns:
        The folder.

    Raises:
        MissingExtraError: scikit-image is not installed.
        UsageError: the size, count or seed cannot be used.
        OutputError: the folder cannot be written.
    """
    least = _SCALE * MIN_SIDE_PX
    if size.height % _SCALE or size.width % _SCALE or min(size.height, size.width) < least:
        raise UsageError(f"{size} pixels cannot be used", fix=f"use even sides of {least} pixels or more")
    if count < 1 or seed < 0:
        raise UsageError(f"{count} photos with the seed {seed}", fix="use 1 or more, and a seed from 0 on")
    root = Path(folder)
    for number in range(count):
        name = f"{number + 1:03d}_{NAMES[number % len(NAMES)]}"
        photograph = _photograph(NAMES[number % len(NAMES)], with_margin(size))
        key, truth = moved_pair(photograph, size, seed=int(image_rng(seed, f"motion:{name}").integers(1 << 31)))
        parameters = sample_degradation(image_rng(seed, f"degradation:{name}"), PRESET, size, scale=_SCALE)
        images = {
            PHOTOS: key,
            TRUTHS: truth,
            FRAMES: apply(parameters, truth, image_rng(seed, f"noise:{FRAMES}:{name}")),
            PHOTO_FRAMES: apply(parameters, key, image_rng(seed, f"noise:{PHOTO_FRAMES}:{name}")),
        }
        for part, pixels in images.items():
            write_image(root / part / f"{name}.png", pixels)
    return root


def _photograph(name: str, size: Size) -> np.ndarray:
    """The middle of a photograph, resized to fill the size."""
    try:
        from skimage import data
    except ImportError:
        raise MissingExtraError("the embedded set", "demo", missing="skimage") from None
    pixels: Any = getattr(data, name)()
    factor = max(size.height / pixels.shape[0], size.width / pixels.shape[1])
    height, width = (
        max(want, round(side * factor)) for side, want in zip(pixels.shape, (size.height, size.width), strict=False)
    )
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    y, x = (height - size.height) // 2, (width - size.width) // 2
    return np.ascontiguousarray(resized[y : y + size.height, x : x + size.width])
