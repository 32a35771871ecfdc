"""Palettes: the values that stand for a tensor's values with the least squared error, found by Lloyd's k-means.

In one dimension a cluster is an interval, so that a round is a few sums over the distinct values in their order: those
of half precision are at most 65,536, however many weights there are. coremltools' own clustering, scikit-learn's,
takes minutes for a network of five million weights, and this takes seconds (docs/coreml.md).
"""

from __future__ import annotations

import numpy as np

_MOST_ROUNDS = 200
_FEWEST_BINS = 64


def find_palette(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A table of ``2**bits`` values, ascending, and for each element the index of the nearest one.

    Tables of fewer distinct values repeat the last.

    Args:
        values: any shape, finite floats.
        bits: width of an index.

    Returns:
        The table in the values' type, and the indices (elements,) uint8, in the elements' order.
    """
    distinct, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    entries = 2**bits
    if len(distinct) <= entries:
        table = np.concatenate([distinct, np.full(entries - len(distinct), distinct[-1])])
        return table.astype(values.dtype), place.reshape(-1).astype(np.uint8)
    wide = distinct.astype(np.float64)
    centers = _first(wide, counts, entries)
    # Sums up to each distinct value: a cluster's are differences of two of them.
    weights = np.concatenate([[0.0], np.cumsum(counts)])
    sums = np.concatenate([[0.0], np.cumsum(wide * counts)])
    edges = np.zeros(0, np.intp)
    for _ in range(_MOST_ROUNDS):
        before, edges = edges, np.searchsorted(wide, (centers[1:] + centers[:-1]) / 2)
        if np.array_equal(before, edges):
            break
        starts, stops = np.concatenate([[0], edges]), np.concatenate([edges, [len(wide)]])
        held = weights[stops] - weights[starts]
        centers = np.where(held > 0, (sums[stops] - sums[starts]) / np.maximum(held, 1), centers)
    table = centers.astype(values.dtype)
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    return table, np.searchsorted(middles, wide)[place].reshape(-1).astype(np.uint8)


def _first(values: np.ndarray, counts: np.ndarray, entries: int) -> np.ndarray:
    """Centers to begin with: as dense as the cube root of the values' density, which is best for many of them
    (P. F. Panter and W. Dite, "Quantization distortion in pulse-count modulation", 1951).
    """
    bins = max(_FEWEST_BINS, entries // 2)  # coarse: the density of the tails must be a density
    density, edges = np.histogram(values, bins=bins, weights=counts)
    share = np.concatenate([[0.0], np.cumsum(np.cbrt(density))])
    places = (np.arange(entries) + 0.5) / entries * share[-1]
    return np.interp(places, share, edges)
