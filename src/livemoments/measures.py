"""How far two arrays are apart. Everything is computed in float64."""

from __future__ import annotations

import math

import numpy as np


def relative_l2(value: np.ndarray, reference: np.ndarray) -> float:
    """``||value - reference|| / ||reference||``; infinite where only the reference is 0."""
    reference = reference.astype(np.float64)
    distance = float(np.linalg.norm((value.astype(np.float64) - reference).ravel()))
    length = float(np.linalg.norm(reference.ravel()))
    if length == 0.0:
        return 0.0 if distance == 0.0 else math.inf
    return distance / length


def psnr_db(value: np.ndarray, reference: np.ndarray, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB; infinite for equal arrays."""
    error = float(np.mean((value.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(peak**2 / error)


def sqnr_db(value: np.ndarray, reference: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio in dB: ``-20 log10`` of the relative L2 error."""
    error = relative_l2(value, reference)
    return math.inf if error == 0.0 else -20.0 * math.log10(error)


def max_abs(value: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference."""
    if value.size == 0:
        return 0.0
    return float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max())
