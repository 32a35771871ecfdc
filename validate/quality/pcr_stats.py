"""PCR statistics of one photo: how far the reference tiles moved, how often the picture's edge held them back, and how
many lie elsewhere than the float32 flow puts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from livemoments.errors import UsageError


def pcr_statistics(
    metadata: Mapping[str, Any], corners: np.ndarray | None = None, fp32_corners: np.ndarray | None = None
) -> dict[str, float]:
    """The ``pcr`` of an :class:`ImageResult`.

    Args:
        metadata: of a :class:`RestoreResult`: ``pcr_mean_shift_px`` and ``pcr_clamp_rate`` are taken from it.
        corners: (tiles, 2) whole numbers, the reference tiles' first rows and columns (the observer's
            ``ref_patch_coords``).
        fp32_corners: the same, from the float32 flow.

    Returns:
        ``mean_shift_px``, ``clamp_rate`` (share of the tiles), and with both corners ``corners_differ`` (how many
        tiles) and ``corners_off_px`` (the farthest of them).

    Raises:
        UsageError: the corners are not of the same tiles.
    """
    found = {
        "mean_shift_px": float(metadata["pcr_mean_shift_px"]),
        "clamp_rate": float(metadata["pcr_clamp_rate"]),
    }
    if corners is not None and fp32_corners is not None:
        if corners.shape != fp32_corners.shape or corners.ndim != 2 or corners.shape[1] != 2:
            raise UsageError(f"corners of shapes {corners.shape} and {fp32_corners.shape} are not of the same tiles")
        offsets = np.hypot(*(corners.astype(np.float64) - fp32_corners.astype(np.float64)).T)
        found["corners_differ"] = float(np.count_nonzero(offsets))
        found["corners_off_px"] = float(offsets.max(initial=0.0))
    return found
