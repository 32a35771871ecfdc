"""From what calibration saw to the scale and zero point of an input, one pair or one per point of the schedule."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from livemoments.errors import UsageError
from livemoments.graphs.linears import LinearId
from livemoments.quantize.calibrate.result import LinearStats

UINT8_MAX = 255
INT8_MAX = 127
_SMALLEST = float(np.finfo(np.float32).tiny)


StatsOf = Mapping[LinearId, LinearStats]


def observed_stats(stats: StatsOf | None, of: LinearId) -> LinearStats:
    """What calibration saw of a linear's input, or of an operand of attention.

    Raises:
        UsageError: nothing.
    """
    found = None if stats is None else stats.get(of)
    if found is None:
        raise UsageError(f"the calibration has no range for '{of}'", fix="calibrate on this bundle for this recipe")
    return found


def input_range(stats: StatsOf | None, of: LinearId, *, per_point: bool) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of a linear's input, 0 within: (P,) each, or (1,) over all points.

    A point that calibration did not sample gets the range of all the others together.

    Raises:
        UsageError: the calibration does not have this linear, or saw nothing of it.
    """
    observed = observed_stats(stats, of)
    low = np.atleast_1d(np.asarray(observed.low, np.float32))
    high = np.atleast_1d(np.asarray(observed.high, np.float32))
    seen = np.isfinite(low) & np.isfinite(high) & (high >= low) & ((high != 0) | (low != 0))
    if not seen.any():
        raise UsageError(f"the calibration saw nothing but zeros at '{of}'", fix="use photographs")
    widest = (low[seen].min(), high[seen].max())
    if not per_point:
        low, high = np.array([widest[0]]), np.array([widest[1]])
    else:
        low, high = np.where(seen, low, widest[0]), np.where(seen, high, widest[1])
    return np.minimum(low, 0).astype(np.float32), np.maximum(high, 0).astype(np.float32)


def unsigned_parameters(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 and zero point uint8 that map [low, high] to [0, 255], 0.0 to an integer."""
    scale = np.maximum((high - low) / np.float32(UINT8_MAX), _SMALLEST).astype(np.float32)
    return scale, np.clip(np.rint(-low / scale), 0, UINT8_MAX).astype(np.uint8)


def symmetric_scale(low: np.ndarray, high: np.ndarray, top: float) -> np.ndarray:
    """Scale float32 that maps the largest magnitude to ``top``."""
    return np.maximum(np.maximum(-low, high) / np.float32(top), _SMALLEST).astype(np.float32)
