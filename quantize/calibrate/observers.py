"""Observers: which range of values a quantizer should cover, given the histogram of the values.

All ranges contain zero, because an 8-bit quantizer must be able to represent zero exactly. ``entropy`` is the measure
of S. Migacz, "8-bit Inference with TensorRT" (GTC 2017), with both ends free; ``mse`` minimises the expected squared
error of rounding and clipping (R. Banner et al., "Post training 4-bit quantization of convolutional networks", NeurIPS
2019, section 3), measured on the histogram rather than on an assumed density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from livemoments.errors import UsageError
from livemoments.quantize.calibrate.histogram import Histogram

LEVELS = 256
"""Levels of the quantizer that entropy and MSE are computed for."""
DEFAULT_PERCENTILE = 99.999
"""Share of the values, in percent, that ``percentile`` keeps; half of the rest is clipped at each end."""
OBSERVERS = ("minmax", "percentile", "entropy", "mse")

_SHRINK = tuple(2.0 ** (-number / 8) for number in reversed(range(64)))
"""Shares of an end that are tried: down to 1/235, 9 percent apart."""
_ROUNDS = 3
_MIN_SHARE = 1e-12
"""Stands for an empty bin in the divergence; below one value in any tensor that fits in memory."""


@dataclass(frozen=True)
class Observer:
    """Chooses a range: ``low <= 0 <= high``, both 0 where nothing was counted. Use :func:`find_observer`.

    Attributes:
        name: its name, with the percentile where that counts: ``percentile:99.999``.
        choose: the range of a histogram in which something was counted.
    """

    name: str
    choose: Callable[[Histogram], tuple[float, float]]

    def range(self, histogram: Histogram) -> tuple[float, float]:
        """The range that a quantizer should cover."""
        return self.choose(histogram) if histogram.counts.size else (0.0, 0.0)


def find_observer(name: str, percentile: float = DEFAULT_PERCENTILE) -> Observer:
    """The observer of a name; ``percentile`` is read by the observer of that name only.

    Raises:
        UsageError: there is no such observer, or the percentile is not within (50, 100].
    """
    if name == "percentile":
        if not 50 < percentile <= 100:
            raise UsageError(f"a percentile of {percentile} leaves no range", fix="use one above 50, up to 100")
        return Observer(f"{name}:{percentile:g}", partial(_middle, percentile=percentile))
    if name not in OBSERVERS:
        raise UsageError(f"there is no observer '{name}'", fix=f"use one of {', '.join(OBSERVERS)}")
    return Observer(name, {"minmax": _whole, "entropy": _least(divergence), "mse": _least(squared_error)}[name])


def _whole(histogram: Histogram) -> tuple[float, float]:
    """The whole range."""
    return _with_zero(histogram.low, histogram.high)


def _middle(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range that the middle ``percentile`` percent of the values lie in."""
    tail = (100 - percentile) / 200
    return _with_zero(quantile(histogram, tail), quantile(histogram, 1 - tail))


def _least(cost_of: Callable[[Histogram, float, float], float]) -> Callable[[Histogram], tuple[float, float]]:
    """The range of least cost, found by moving one end at a time until no move lowers it."""

    def choose(histogram: Histogram) -> tuple[float, float]:
        low, high = best = _whole(histogram)
        if low == high:
            return best

        @cache  # the last round only repeats
        def cost(ends: tuple[float, float]) -> float:
            return cost_of(histogram, *ends)

        for _ in range(_ROUNDS):
            before = best
            # narrow ranges come first, so that they win where the histogram cannot tell
            best = min(((low * share, best[1]) for share in _shares(low)), key=cost)
            best = min(((best[0], high * share) for share in _shares(high)), key=cost)
            if best == before:
                break
        return best

    return choose


def quantile(histogram: Histogram, share: float) -> float:
    """The value below which ``share`` of the values lie, interpolated within its bin; exact at 0 and 1."""
    if share <= 0:
        return histogram.low
    if share >= 1:
        return histogram.high
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    position = share * below[-1]
    number = int(np.searchsorted(below, position, side="right")) - 1
    number = min(number, len(histogram.counts) - 1)
    inside = (position - below[number]) / max(1, int(histogram.counts[number]))
    value = (histogram.first + number + inside) * histogram.width
    return float(np.clip(value, histogram.low, histogram.high))


def divergence(histogram: Histogram, low: float, high: float, levels: int = LEVELS) -> float:
    """KL divergence of the quantized distribution from the clipped one, in nats; infinite where nothing is left."""
    centers, counts = histogram.centers(), histogram.counts.astype(np.float64)
    inside = np.flatnonzero((centers >= low) & (centers <= high) & (counts > 0))
    if not inside.size or high <= low:
        return np.inf
    first, last = inside[0], inside[-1] + 1
    kept = counts[first:last]
    clipped = kept.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    level = np.rint((centers[first:last] - low) * ((levels - 1) / (high - low))).astype(np.intp)
    filled = kept > 0
    mass, bins = np.bincount(level, weights=kept), np.bincount(level, weights=filled)
    spread = np.where(filled, (mass / np.maximum(bins, 1))[level], 0.0) / kept.sum()
    share = clipped / clipped.sum()
    where = share > 0
    return float(np.sum(share[where] * np.log(share[where] / np.maximum(spread[where], _MIN_SHARE))))


def squared_error(histogram: Histogram, low: float, high: float, levels: int = LEVELS) -> float:
    """Expected squared error of a quantizer with ``levels`` levels from ``low`` to ``high``.

    Where a step is hardly wider than a bin, the histogram cannot tell where in a step a value lies: the error of
    rounding is then a uniform one's.
    """
    if high <= low:
        return np.inf
    centers, width = histogram.centers(), histogram.width
    step = (high - low) / (levels - 1)
    inner = np.clip(centers, low, high)
    clip = centers - inner
    if step >= 2 * width:
        rounding = inner - (np.rint((inner - low) / step) * step + low)
        errors = (clip + rounding) ** 2 + width**2 / 12
    else:
        errors = clip**2 + np.where(clip == 0, step**2 / 12, 0.0)
    return float(errors @ histogram.counts / max(1, histogram.total))


def _with_zero(low: float, high: float) -> tuple[float, float]:
    return min(low, 0.0), max(high, 0.0)


def _shares(end: float) -> tuple[float, ...]:
    return _SHRINK if end else _SHRINK[-1:]
