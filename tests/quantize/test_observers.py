"""Streaming histograms and observers against direct computation on all values at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from livemoments.errors import UsageError
from livemoments.quantize.calibrate.histogram import BINS, Histogram
from livemoments.quantize.calibrate.observers import (
    LEVELS,
    OBSERVERS,
    divergence,
    find_observer,
    quantile,
    squared_error,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = arrays(np.float32, array_shapes(max_dims=2, max_side=40), elements=FLOATS)
MSE_TOLERANCE = 1.05
"""How much worse than the best range in its grid the MSE observer's may be, measured on the values themselves."""
EXAMPLES = settings(max_examples=150, deadline=None)


def counted(*pieces: np.ndarray) -> Histogram:
    histogram = Histogram.empty()
    for piece in pieces:
        histogram.add(piece)
    return histogram


def assert_same(one: Histogram, other: Histogram) -> None:
    assert (one.low, one.high, one.exponent, one.first) == (other.low, other.high, other.exponent, other.first)
    np.testing.assert_array_equal(one.counts, other.counts)


def heavy_tailed(seed: int, size: int = 40_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


def fake_quantized(values: np.ndarray, low: float, high: float) -> np.ndarray:
    step = (high - low) / (LEVELS - 1)
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) / step) * step + low


@EXAMPLES
@given(VALUES)
def test_counts_are_those_of_a_direct_computation(values: np.ndarray) -> None:
    histogram = counted(values)
    exact = values.astype(np.float64).reshape(-1)
    assert histogram.low == exact.min()
    assert histogram.high == exact.max()
    assert len(histogram.counts) <= BINS
    bins = np.floor(exact / histogram.width).astype(np.int64) - histogram.first
    np.testing.assert_array_equal(histogram.counts, np.bincount(bins, minlength=len(histogram.counts)))
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0


@EXAMPLES
@given(VALUES, VALUES, VALUES)
def test_neither_order_nor_pieces_matter(one: np.ndarray, two: np.ndarray, three: np.ndarray) -> None:
    at_once = counted(np.concatenate([v.reshape(-1) for v in (one, two, three)]))
    assert_same(counted(one, two, three), at_once)
    assert_same(counted(three, one, two), at_once)
    left, right = counted(one), counted(two, three)
    left.merge(right)
    assert_same(left, at_once)
    right.merge(counted(one))
    assert_same(right, at_once)


def test_range_grows_by_orders_of_magnitude() -> None:
    rng = np.random.default_rng(0)
    pieces = [(rng.normal(size=500) * 10.0**power).astype(np.float32) for power in (-30, -3, 0, 6, 30)]
    assert_same(counted(*pieces), counted(np.concatenate(pieces)))


def test_bins_are_used_to_at_least_half() -> None:
    for seed in range(5):
        histogram = counted(heavy_tailed(seed))
        assert BINS // 2 <= len(histogram.counts) <= BINS


def test_long_tensors_are_counted_in_pieces() -> None:
    values = np.random.default_rng(1).normal(size=(3, (1 << 20) + 17)).astype(np.float16)
    histogram = counted(values)
    assert histogram.total == values.size
    flat = values.astype(np.float64).reshape(-1)
    assert histogram.counts[-1] == np.sum(np.floor(flat / histogram.width) == np.floor(flat.max() / histogram.width))


def test_nothing_and_not_finite() -> None:
    histogram = Histogram.empty()
    histogram.add(np.zeros((0, 4), np.float32))
    histogram.merge(Histogram.empty())
    assert histogram.total == 0
    for name in OBSERVERS:
        assert find_observer(name).range(histogram) == (0.0, 0.0)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            histogram.add(np.array([1.0, bad], np.float32))
    assert histogram.total == 0


@EXAMPLES
@given(VALUES, st.floats(0, 1))
def test_quantile_is_within_a_bin_of_the_values(values: np.ndarray, share: float) -> None:
    histogram = counted(values)
    exact = values.astype(np.float64)
    found = quantile(histogram, share)
    neighbours = 1 / exact.size  # interpolation within a bin may end at the next value's bin
    below = np.quantile(exact, max(0.0, share - neighbours), method="lower")
    above = np.quantile(exact, min(1.0, share + neighbours), method="higher")
    assert below - histogram.width <= found <= above + histogram.width
    assert quantile(histogram, 0) == exact.min()
    assert quantile(histogram, 1) == exact.max()


@EXAMPLES
@given(VALUES, st.sampled_from(OBSERVERS))
def test_ranges_contain_zero_and_nothing_beyond_the_values(values: np.ndarray, name: str) -> None:
    low, high = find_observer(name).range(counted(values))
    assert min(0.0, float(values.min())) <= low <= 0 <= high <= max(0.0, float(values.max()))
    assert low < high or not values.any()


def test_minmax_is_exact() -> None:
    values = heavy_tailed(2)
    assert find_observer("minmax").range(counted(values[:7], values[7:])) == (values.min(), values.max())
    assert find_observer("minmax").range(counted(np.abs(values) + 1)) == (0.0, np.abs(values).max() + 1)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_against_numpy(percentile: float) -> None:
    values = heavy_tailed(3)
    histogram = counted(*np.array_split(values, 7))
    low, high = find_observer("percentile", percentile).range(histogram)
    ordered = np.sort(values.astype(np.float64))
    cut = round(values.size * (100 - percentile) / 200)  # how many values are clipped at each end
    assert ordered[cut - 1] - histogram.width <= low <= ordered[cut + 1] + histogram.width
    assert ordered[-cut - 2] - histogram.width <= high <= ordered[-cut] + histogram.width


@pytest.mark.parametrize("seed", range(4))
def test_mse_is_the_best_of_its_grid_on_the_values_themselves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [heavy_tailed(seed), np.exp(rng.normal(size=20_000)), rng.normal(size=20_000) ** 3][seed % 3]
    values = values.astype(np.float32)
    histogram = counted(values)
    low, high = find_observer("mse").range(histogram)

    def error(ends: tuple[float, float]) -> float:
        return float(np.mean((fake_quantized(values, *ends) - values) ** 2))

    bottom, top = min(float(values.min()), 0.0), float(values.max())
    shares = 2.0 ** (-np.arange(0, 64, 4) / 8)
    grid = [(bottom * a, top * b) for a in (shares if bottom else shares[:1]) for b in shares]
    assert error((low, high)) <= MSE_TOLERANCE * min(error(ends) for ends in grid)
    assert error((low, high)) <= error((bottom, top))


def test_squared_error_predicts_the_error_of_the_values() -> None:
    values = heavy_tailed(5)
    histogram = counted(values)
    for share in (1.0, 0.3, 0.1, 0.02):
        low, high = histogram.low * share, histogram.high * share
        measured = np.mean((fake_quantized(values, low, high) - values) ** 2)
        assert squared_error(histogram, low, high) == pytest.approx(measured, rel=0.02)


def test_divergence_by_hand() -> None:
    # Eight bins, two levels over all of them: each level's mass is spread evenly over its four bins.
    histogram = Histogram(0.0, 7.9, 0, 0, np.array([4, 0, 2, 2, 1, 1, 5, 1], np.int64))
    levels = np.rint((np.clip(np.arange(8) + 0.5, 0, 7.9)) / 7.9).astype(int)
    p = histogram.counts / 16
    q = np.zeros(8)
    for level in (0, 1):
        bins = np.flatnonzero((levels == level) & (p > 0))
        q[bins] = p[bins].sum() / len(bins)
    wanted = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    assert divergence(histogram, 0.0, 7.9, levels=2) == pytest.approx(wanted, rel=1e-12)


def test_entropy_clips_what_is_rare_and_keeps_what_is_common() -> None:
    rng = np.random.default_rng(6)
    common = rng.uniform(-1, 1, 100_000)
    rare = np.concatenate([common, [40.0, -35.0]])
    low, high = find_observer("entropy").range(counted(rare.astype(np.float32)))
    assert -1.5 < low < -0.9
    assert 0.9 < high < 1.5
    low, high = find_observer("entropy").range(counted(common.astype(np.float32)))
    assert low < -0.9
    assert high > 0.9


@pytest.mark.parametrize("name", ["percentile", "entropy", "mse"])
def test_an_outlier_does_not_cost_the_others_their_resolution(name: str) -> None:
    values = np.append(np.random.default_rng(7).normal(size=200_000), 500.0).astype(np.float32)
    histogram = counted(values)

    def median_error(ends: tuple[float, float]) -> float:
        return float(np.median(np.abs(fake_quantized(values, *ends) - values)))

    if name == "mse":  # one value of 500 weighs more than the rounding of 200 000: clipping it would be wrong
        values = np.append(np.random.default_rng(7).normal(size=200_000), 12.0).astype(np.float32)
        histogram = counted(values)
    ranges = find_observer(name, 99.99).range(histogram)
    assert median_error(ranges) < 0.8 * median_error(find_observer("minmax").range(histogram))


def test_bad_names_and_percentiles() -> None:
    with pytest.raises(UsageError, match="no observer 'median'"):
        find_observer("median")
    for percentile in (0.0, 50.0, 100.5, math.nan):
        with pytest.raises(UsageError, match="leaves no range"):
            find_observer("percentile", percentile)
