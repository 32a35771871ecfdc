"""Streaming histograms whose range grows, and whose counts do not depend on the order in which values came.

Bins are ``[i, i + 1) * 2**exponent``. Widening by a power of two merges neighbours exactly, so the histogram of a
stream is the histogram that its values would have had at once, however they were cut into pieces, in any order, and
also when two halves were counted apart and merged (which is what makes calibration resumable to the byte).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BINS = 8192
"""Most bins. Between half and all of them are in use: 16 to 32 a level of an 8-bit quantizer over the whole range, and
one at least where an outlier makes the range 16 times as wide as it should be."""
_MANTISSA_BITS = 23
"""Bins finer than this, relative to the largest magnitude, would be finer than float32."""
_MIN_EXPONENT = -149
"""The smallest float32 is 2**-149."""
_MOST_DOUBLINGS = 62
"""Numpy's shifts end there; indices are below 2**24, so that more doublings would change nothing."""
_CHUNK_ELEMENTS = 1 << 20


@dataclass(slots=True)
class Histogram:
    """Counts of finite values.

    Attributes:
        low, high: the smallest and the largest value, exactly; infinite where nothing was counted.
        exponent: bins are ``2**exponent`` wide; the smallest for which :data:`BINS` bins hold the range.
        first: bin 0 begins at ``first * 2**exponent``.
        counts: (n,) int64, n at most :data:`BINS`; the first bin holds ``low``, the last ``high``.
    """

    low: float
    high: float
    exponent: int
    first: int
    counts: np.ndarray

    @classmethod
    def empty(cls) -> Histogram:
        """A histogram of nothing."""
        return cls(math.inf, -math.inf, _MIN_EXPONENT, 0, np.zeros(0, np.int64))

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def width(self) -> float:
        """Width of a bin."""
        return math.ldexp(1.0, self.exponent)

    def edges(self) -> np.ndarray:
        """(n + 1,) float64: where the bins begin and the last one ends."""
        return (self.first + np.arange(len(self.counts) + 1, dtype=np.float64)) * self.width

    def centers(self) -> np.ndarray:
        """(n,) float64: the middles of the bins, none outside of ``[low, high]``."""
        edges = self.edges()
        return np.clip((edges[:-1] + edges[1:]) / 2, self.low, self.high)

    def add(self, values: np.ndarray) -> None:
        """Count values of any float type and shape.

        Raises:
            ValueError: a value is NaN or infinite; nothing was counted then.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())  # both propagate NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN or infinity cannot be counted")
        self._widen(low, high)
        flat = values.reshape(-1)
        scale = math.ldexp(1.0, -self.exponent)  # exact in float64, as is every product with it
        for start in range(0, flat.size, _CHUNK_ELEMENTS):
            scaled = flat[start : start + _CHUNK_ELEMENTS].astype(np.float64) * scale
            index = np.floor(scaled, out=scaled).astype(np.intp)
            index -= self.first
            self.counts += np.bincount(index, minlength=len(self.counts))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram, which stays as it is."""
        if not other.counts.size:
            return
        self._widen(other.low, other.high)
        first, counts = _coarsened(other.first, other.counts, self.exponent - other.exponent)
        place = first - self.first
        self.counts[place : place + len(counts)] += counts

    def _widen(self, low: float, high: float) -> None:
        """Make the bins those of the range that also holds ``low`` and ``high``."""
        low, high = min(low, self.low), max(high, self.high)
        exponent = _exponent(low, high)
        first, counts = _coarsened(self.first, self.counts, exponent - self.exponent)
        new_first, last = _bin(low, exponent), _bin(high, exponent)
        wider = np.zeros(last - new_first + 1, np.int64)
        place = first - new_first
        if counts.size:
            wider[place : place + len(counts)] = counts
        self.low, self.high, self.exponent, self.first, self.counts = low, high, exponent, new_first, wider


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent(low: float, high: float) -> int:
    """The smallest allowed exponent at which :data:`BINS` bins hold the range; never smaller for a wider range."""
    magnitude = max(abs(low), abs(high))
    least = max(_MIN_EXPONENT, math.frexp(magnitude)[1] - _MANTISSA_BITS) if magnitude else _MIN_EXPONENT
    exponent = least
    if high > low:
        exponent = max(least, math.frexp((high - low) / BINS)[1] - 1)
    while _bin(high, exponent) - _bin(low, exponent) >= BINS:
        exponent += 1
    while exponent > least and _bin(high, exponent - 1) - _bin(low, exponent - 1) < BINS:
        exponent -= 1
    return exponent


def _coarsened(first: int, counts: np.ndarray, doublings: int) -> tuple[int, np.ndarray]:
    """The same counts in bins that are ``2**doublings`` times as wide."""
    if doublings == 0 or not counts.size:
        return first, counts
    doublings = min(doublings, _MOST_DOUBLINGS)
    index = ((first + np.arange(len(counts))) >> doublings) - (first >> doublings)
    merged = np.zeros(int(index[-1]) + 1, np.int64)
    np.add.at(merged, index, counts)
    return first >> doublings, merged
