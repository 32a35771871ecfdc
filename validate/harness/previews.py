"""Small pictures of one image for the report: input, output, key photo, truth, and where the error lies."""

from __future__ import annotations

import cv2
import numpy as np

from livemoments.runtime.image_files.encode import Metadata, encode, to_bit_depth
from livemoments.runtime.image_files.photo import Photo

ROLES = {
    "input": "enlarged input",
    "output": "restored",
    "reference": "key photo",
    "truth": "ground truth",
    "error": "error map",
}
"""The pictures of an image in the order in which they are read, with their names on the report's page."""
RESULT = "result"
"""The restored photo itself, beside them."""
LONGEST_SIDE_PX = 900
QUALITY = 86
"""Of the JPEG files: about 100 kB for a photograph of that size."""
TRUTH_TOP_LEVELS = 32.0
"""Error against the truth, in 8-bit levels, that the heat map shows in its brightest colour."""
RECORDED_TOP_LEVELS = 4.0
"""The same against the reference's photo, from which a good engine is hardly away."""

_FRACTIONS = 255
"""Parts of an 8-bit level in which the heat map's errors are averaged: 255 levels of them fill 16 bits."""


def make_previews(
    output: Photo, upscaled: np.ndarray, reference: Photo, truth: Photo | None, recorded: Photo | None
) -> dict[str, bytes]:
    """JPEG files by role: ``input``, ``output``, ``reference``, ``truth`` and ``error``.

    Args:
        output: the restored photo, (H, W, 3).
        upscaled: the input, bicubically upscaled to (H, W, 3), in the output's type.
        reference: the key photo.
        truth: of the output's size; the heat map shows the error against it.
        recorded: the reference's photo, for the heat map where there is no truth.
    """
    pictures = {
        "input": _preview(upscaled, output.icc_profile),
        "output": _preview(output.pixels, output.icc_profile),
        "reference": _preview(reference.pixels, reference.icc_profile),
    }
    if truth is not None:
        pictures["truth"] = _preview(truth.pixels, truth.icc_profile)
    against, top = (truth, TRUTH_TOP_LEVELS) if truth is not None else (recorded, RECORDED_TOP_LEVELS)
    if against is not None:
        pictures["error"] = _encode(error_map(output.pixels, against.pixels, top_levels=top), None)
    return pictures


def error_map(value: np.ndarray, wanted: np.ndarray, *, top_levels: float) -> np.ndarray:
    """Where two pictures of one size differ, as (h, w, 3) uint8 RGB of preview size, from black to bright yellow.

    Args:
        value: (H, W, 3) uint8 or uint16.
        wanted: what it is compared with, of the same size.
        top_levels: the mean absolute difference of the channels, in 8-bit levels, that is drawn brightest.
    """
    difference = cv2.absdiff(to_bit_depth(value, 8), to_bit_depth(wanted, 8))
    fine = difference.sum(axis=2, dtype=np.uint16) * np.uint16(_FRACTIONS // 3)  # shrinking rounds to whole numbers
    mean = _shrink(fine).astype(np.float32) / _FRACTIONS
    levels = np.rint(np.clip(mean * np.float32(255 / top_levels), 0, 255)).astype(np.uint8)
    coloured: np.ndarray = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return coloured


def _preview(pixels: np.ndarray, icc_profile: bytes | None) -> bytes:
    return _encode(_shrink(to_bit_depth(pixels, 8)), icc_profile)


def _encode(pixels: np.ndarray, icc_profile: bytes | None) -> bytes:
    return encode("preview.jpg", pixels, Metadata(icc_profile=icc_profile), QUALITY)[0]


def _shrink(pixels: np.ndarray) -> np.ndarray:
    """To at most :data:`LONGEST_SIDE_PX`, averaging; smaller pictures stay as they are."""
    height, width = pixels.shape[:2]
    factor = LONGEST_SIDE_PX / max(height, width)
    if factor >= 1:
        return pixels
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk: np.ndarray = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return shrunk
