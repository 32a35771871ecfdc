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
    return psnr_of(mean_squared_error(value, reference), peak)


def mean_squared_error(value: np.ndarray, reference: np.ndarray) -> float:
    """Mean of the squared differences."""
    return float(np.mean((value.astype(np.float64) - reference.astype(np.float64)) ** 2))


def sqnr_db(value: np.ndarray, reference: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio in dB: ``-20 log10`` of the relative L2 error."""
    return sqnr_of(relative_l2(value, reference))


def cosine(value: np.ndarray, reference: np.ndarray) -> float:
    """Cosine of the angle between the flattened arrays; 1 if both are 0, 0 if one is."""
    a, b = value.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    return cosine_of(float(a @ b), float(a @ a), float(b @ b))


def max_abs(value: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute difference."""
    if value.size == 0:
        return 0.0
    return float(np.abs(value.astype(np.float64) - reference.astype(np.float64)).max())


def relative_of(squared_distance: float, squared_length: float) -> float:
    """Relative L2 error from its two sums of squares; infinite where only the reference is 0."""
    if squared_length == 0.0:
        return 0.0 if squared_distance == 0.0 else math.inf
    return math.sqrt(squared_distance / squared_length)


def psnr_of(mse: float, peak: float = 1.0) -> float:
    """PSNR in dB from a mean squared error."""
    return math.inf if mse == 0.0 else 10.0 * math.log10(peak**2 / mse)


def mse_of(psnr_db: float) -> float:
    """Mean squared error over [0, 1] from a PSNR in dB: the inverse of :func:`psnr_of` with a peak of 1."""
    return 10.0 ** (-psnr_db / 10.0)


def sqnr_of(relative_error: float) -> float:
    """SQNR in dB from a relative L2 error."""
    return math.inf if relative_error == 0.0 else -20.0 * math.log10(relative_error)


def cosine_of(dot: float, squared_value: float, squared_reference: float) -> float:
    """Cosine from a dot product and two sums of squares."""
    if squared_value == 0.0 or squared_reference == 0.0:
        return 1.0 if squared_value == squared_reference else 0.0
    quotient = dot / math.sqrt(squared_value) / math.sqrt(squared_reference)
    return quotient if math.isnan(quotient) else max(-1.0, min(1.0, quotient))  # rounding may take it past 1
