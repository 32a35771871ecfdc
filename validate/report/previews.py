"""Pictures of one image for the report: reduced copies of what is compared, and a heat map of the error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from livemoments.runtime.images import write_image

PREVIEW_EDGE_PX = 960
PARITY_LEVELS = 16
"""Full scale of the heat map against the reference, in levels of 255."""
TRUTH_LEVELS = 64
"""Full scale of the heat map against the ground truth, where there is no reference."""

ROLES = ("output", "input", "reference", "truth")
_QUALITY = 88
_STOPS = 9


def write_previews(folder: Path, place: str, pictures: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write an image's pictures for the report.

    Args:
        folder: the report's.
        place: a folder in it for these files, e.g. ``pictures/0007``.
        pictures: (H, W, 3) uint8 or uint16 by role: ``output``, and of ``input``, ``reference`` and ``truth`` what
            is there, all of the output's size.

    Returns:
        The files by role, relative to ``folder``, for :attr:`ImageResult.files`; with a heat map, ``error``, against
        the reference or else the truth.

    Raises:
        OutputError: they cannot be written.
    """
    bytes_by_role = {role: _to_bytes(pictures[role]) for role in ROLES if role in pictures}
    shown = {role: _reduced(pixels) for role, pixels in bytes_by_role.items()}
    against = error_against(bytes_by_role)
    if against is not None:
        other, levels = against
        shown["error"] = _reduced(error_map(bytes_by_role["output"], bytes_by_role[other], levels))
    files = {}
    for role, pixels in shown.items():
        files[role] = f"{place}/{role}.jpg"
        write_image(folder / files[role], pixels, quality=_QUALITY)
    return files


def error_against(roles: Mapping[str, object]) -> tuple[str, int] | None:
    """What an image's heat map compares the output with, and its full scale in levels of 255."""
    if "output" in roles:
        for role, levels in (("reference", PARITY_LEVELS), ("truth", TRUTH_LEVELS)):
            if role in roles:
                return role, levels
    return None


def error_map(output: np.ndarray, other: np.ndarray, levels: int) -> np.ndarray:
    """The largest difference of the three channels as a colour, black for none.

    Args:
        output: (H, W, 3) uint8.
        other: the same shape.
        levels: the difference, of 255, that gets the brightest colour.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    distance = np.abs(output.astype(np.int16) - other.astype(np.int16)).max(axis=2)
    return _colours(np.minimum(distance * 255 // levels, 255).astype(np.uint8))


def legend_gradient() -> str:
    """The heat map's colours as a CSS gradient, from none to full scale."""
    stops = _colours(np.linspace(0, 255, _STOPS).round().astype(np.uint8)[None])[0]
    return f"linear-gradient(90deg, {', '.join('#%02x%02x%02x' % tuple(stop) for stop in stops)})"  # noqa: UP031


def _colours(values: np.ndarray) -> np.ndarray:
    import cv2

    coloured: np.ndarray = cv2.applyColorMap(values, cv2.COLORMAP_INFERNO)[..., ::-1]
    return coloured


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels / 257).astype(np.uint8)


def _reduced(pixels: np.ndarray) -> np.ndarray:
    import cv2

    height, width = pixels.shape[:2]
    share = PREVIEW_EDGE_PX / max(height, width)
    if share >= 1:
        return np.ascontiguousarray(pixels)
    size = (max(round(width * share), 1), max(round(height * share), 1))
    return cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_AREA)
