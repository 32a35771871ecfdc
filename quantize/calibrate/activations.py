"""What calibration keeps of one activation: a histogram per schedule point, and extremes and power per channel.

The size of it depends on the schedule and on the layer's width, never on how much was seen. Two of them that saw
different images merge exactly, except for ``power``, whose float64 sums depend on the order of merging.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from livemoments.quantize.calibrate.histogram import BINS, Histogram

_CHUNK_ELEMENTS = 1 << 20


class ActivationStats:
    """Statistics of one value (..., K) over a schedule of P points.

    Args:
        points: P.
        features: K.

    Attributes:
        histograms: one per point.
        rows: (P,) int64, how many vectors were seen.
        channel_low, channel_high: (P, K) float32, extremes of each channel; infinite where nothing was seen.
        power: (K,) float64, sum of the squares over all points.
    """

    def __init__(self, points: int, features: int) -> None:
        self.histograms = [Histogram.empty() for _ in range(points)]
        self.rows = np.zeros(points, np.int64)
        self.channel_low = np.full((points, features), np.inf, np.float32)
        self.channel_high = np.full((points, features), -np.inf, np.float32)
        self.power = np.zeros(features, np.float64)

    @property
    def features(self) -> int:
        """K."""
        return len(self.power)

    def add(self, point: int, values: np.ndarray) -> None:
        """Count values (..., K) seen at a schedule point.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        rows = values.reshape(-1, self.features)
        if not rows.size:
            return
        self.histograms[point].add(rows)
        self.rows[point] += len(rows)
        low, high = self.channel_low[point], self.channel_high[point]
        np.minimum(low, rows.min(axis=0), out=low, casting="same_kind")
        np.maximum(high, rows.max(axis=0), out=high, casting="same_kind")
        for piece in _pieces(rows):
            wide = piece.astype(np.float64)
            self.power += np.einsum("rk,rk->k", wide, wide)

    def merge(self, other: ActivationStats) -> None:
        """Add what another one saw."""
        for histogram, added in zip(self.histograms, other.histograms, strict=True):
            histogram.merge(added)
        self.rows += other.rows
        np.minimum(self.channel_low, other.channel_low, out=self.channel_low)
        np.maximum(self.channel_high, other.channel_high, out=self.channel_high)
        self.power += other.power

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays; :meth:`from_arrays` reads them."""
        counts = np.zeros((len(self.histograms), BINS), np.int64)
        for row, histogram in zip(counts, self.histograms, strict=True):
            row[: len(histogram.counts)] = histogram.counts
        return {
            "counts": counts,
            "used": np.array([len(h.counts) for h in self.histograms], np.int64),
            "bins": np.array([(h.exponent, h.first) for h in self.histograms], np.int64),
            "extremes": np.array([(h.low, h.high) for h in self.histograms], np.float64),
            "rows": self.rows,
            "channel_low": self.channel_low,
            "channel_high": self.channel_high,
            "power": self.power,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ActivationStats:
        """Read what :meth:`to_arrays` wrote.

        Raises:
            KeyError, ValueError, IndexError: it is something else.
        """
        points, features = arrays["channel_low"].shape
        stats = cls(points, features)
        stats.rows[:] = arrays["rows"]
        stats.channel_low[:] = arrays["channel_low"]
        stats.channel_high[:] = arrays["channel_high"]
        stats.power[:] = arrays["power"]
        stats.histograms = [
            Histogram(float(low), float(high), int(exponent), int(first), row[:used].copy())
            for row, used, (exponent, first), (low, high) in zip(
                arrays["counts"], arrays["used"], arrays["bins"], arrays["extremes"], strict=True
            )
        ]
        return stats


def _pieces(rows: np.ndarray) -> Iterable[np.ndarray]:
    """Runs of rows of about a million elements, always cut at the same places."""
    step = max(1, _CHUNK_ELEMENTS // max(1, rows.shape[1]))
    return (rows[start : start + step] for start in range(0, len(rows), step))
