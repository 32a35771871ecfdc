"""Metrics over a data set: exact in any order, from workers and from written results; memory does not grow."""

from __future__ import annotations

import json
import math
import random
import statistics
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from iqa_support import degraded, picture

from livemoments.errors import UsageError
from livemoments.validate.quality.aggregate import Aggregator, ExactMoments, load_features, save_features
from livemoments.validate.quality.meter import ImageQuality, QualityMeter
from livemoments.validate.report_data import Metric


def level(tile: np.ndarray) -> float:
    return float(tile.mean())


def channels(tile: np.ndarray) -> np.ndarray:
    return np.concatenate([tile.mean(axis=(0, 1)), tile.std(axis=(0, 1))])


def planted_meter() -> QualityMeter:
    return QualityMeter("default,musiq,musiq_re,fid_512", planted={"musiq": level, "fid_512": channels})


def some_results(count: int = 5) -> tuple[QualityMeter, list[ImageQuality]]:
    meter = planted_meter()
    results = []
    for seed in range(count):
        truth = picture(516, 520 + 512 * (seed % 2), seed=seed)
        results.append(meter.measure(degraded(truth, seed), degraded(truth, seed, 0.2), picture(200, 200, seed), truth))
    return meter, results


def aggregated(meter: QualityMeter, results: list[ImageQuality]) -> tuple[Metric, ...]:
    total = Aggregator(meter)
    for result in results:
        total.add(result.metrics, result.input_metrics, result.features)
    return total.metrics()


def test_rows_are_the_statistics_of_the_images() -> None:
    meter, results = some_results()
    rows = {row.name: row for row in aggregated(meter, results)}
    assert list(rows) == [spec.name for spec in meter.specs]
    for name in ("psnr_y", "ssim_y", "ms_ssim_y", "musiq", "musiq_re"):
        values = [result.metrics[name] for result in results]
        inputs = [result.input_metrics[name] for result in results]
        assert rows[name].mean == pytest.approx(statistics.fmean(values), rel=1e-12)  # type: ignore[type-var]
        assert rows[name].std == pytest.approx(statistics.pstdev(values), rel=1e-9)  # type: ignore[type-var]
        assert rows[name].input_mean == pytest.approx(statistics.fmean(inputs), rel=1e-12)  # type: ignore[type-var]
        assert (rows[name].count, rows[name].status) == (5, "ok")
    assert rows["psnr_y"].title == "PSNR (y, BT.601 studio)"
    assert (rows["psnr_y"].unit, rows["psnr_y"].better, rows["musiq_re"].better) == ("dB", "higher", "lower")
    assert rows["psnr_y"].mean > rows["psnr_y"].input_mean  # type: ignore[operator]


def test_the_fid_is_that_of_all_patches_together() -> None:
    from scipy.linalg import sqrtm

    meter, results = some_results()
    sets = [
        np.concatenate([r.features[f"fid_512.{role}"] for r in results]).astype(float) for role in ("output", "truth")
    ]
    assert sets[0].shape == (7, 6)
    covariances = [np.cov(s, rowvar=False) for s in sets]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((sets[0].mean(0) - sets[1].mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
    (row,) = [row for row in aggregated(meter, results) if row.name == "fid_512"]
    assert row.mean == pytest.approx(expected, abs=1e-7)
    assert (row.count, row.std, row.input_mean) == (5, None, None)


def test_a_run_that_goes_on_ends_with_the_same_rows(tmp_path: Path) -> None:
    """From results that were written as JSON and features as npz."""
    meter, results = some_results()
    expected = aggregated(meter, results)
    rebuilt = Aggregator(planted_meter())
    for number, result in enumerate(results):
        texts = [json.dumps(part, allow_nan=False) for part in (result.metrics, result.input_metrics)]
        save_features(tmp_path / f"{number}.npz", result.features)
        rebuilt.add(*map(json.loads, texts), load_features(tmp_path / f"{number}.npz"))
    assert rebuilt.metrics() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.npz" for n in range(5)]
    (tmp_path / "broken.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"broken\.npz"):
        load_features(tmp_path / "broken.npz")


def test_the_order_changes_no_bit() -> None:
    generator = random.Random()
    values = [generator.uniform(10, 60) * 10 ** generator.uniform(-9, 3) for _ in range(300)]
    meter = QualityMeter("psnr_y")

    def rows(order: list[float]) -> tuple[Metric, ...]:
        total = Aggregator(meter)
        for value in order:
            total.add({"psnr_y": value})
        return total.metrics()

    expected = rows(values)
    assert expected[0].mean == pytest.approx(statistics.fmean(values), rel=1e-15)
    for _ in range(3):
        generator.shuffle(values)
        assert rows(values) == expected


def test_exact_moments_are_exact() -> None:
    moments = ExactMoments()
    assert (moments.mean, moments.std) == (None, None)
    for value in (1e16, 1.0, -1e16, 5e-324):
        moments.add(value)
    assert moments.mean == 0.25
    one = ExactMoments()
    one.add(-3.7)
    assert (one.mean, one.std) == (-3.7, 0.0)
    close = ExactMoments()
    for value in (1e9, 1e9 + 1e-6):
        close.add(value)
    assert close.std == pytest.approx((1e9 + 1e-6 - 1e9) / 2, rel=1e-12)
    with pytest.raises(ValueError, match="no place in a mean"):
        one.add(math.nan)


def test_memory_does_not_grow_with_the_images() -> None:
    generator = np.random.default_rng(1)
    total = Aggregator(planted_meter())

    def feed(images: int) -> int:
        for _ in range(images):
            features = {key: generator.normal(size=(9, 32)) for key in ("fid_512.output", "fid_512.truth")}
            metrics = dict(zip(("psnr_y", "ssim_y", "musiq"), generator.uniform(0, 40, 3).tolist(), strict=True))
            total.add(metrics, metrics, features)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = feed(20)
        grown = feed(400) - before
    finally:
        tracemalloc.stop()
    assert grown < 4000  # ten bytes an image


def test_equal_pictures_are_left_out_of_the_mean_and_said() -> None:
    pixels = picture(170, 170, seed=3)
    meter = QualityMeter()
    exact = meter.measure(pixels, truth=pixels)
    assert exact.metrics == {"psnr_y": None, "psnr_y_infinite": 1.0, "ssim_y": 1.0, "ms_ssim_y": 1.0}
    near = meter.measure(degraded(pixels, 4), truth=pixels)
    row, structure, _ = aggregated(meter, [exact, near])
    assert (row.count, row.mean, row.status) == (1, near.metrics["psnr_y"], "ok")
    assert row.title == "PSNR (y, BT.601 studio); 1 equal to the truth left out"
    assert structure.count == 2
    (row, *_) = aggregated(meter, [exact, exact])
    assert (row.count, row.mean, row.std) == (0, None, None)
    assert row.status == "infinite: every image equals its ground truth"


def test_why_there_is_no_number() -> None:
    pixels = picture(100, 100, seed=5)
    meter = QualityMeter("psnr_y,ms_ssim_y,musiq_re,lpips,fid_512", planted={"musiq": level, "fid_512": channels})
    rows = {row.name: row for row in aggregated(meter, [meter.measure(pixels)])}
    assert all(row.mean is None and row.count == 0 for row in rows.values())
    assert rows["psnr_y"].status == "needs ground truth"
    assert rows["ms_ssim_y"].status == "needs ground truth and pictures of at least 161x161 pixels"
    assert rows["musiq_re"].status == "needs the key photo and pictures of at least 32x32 pixels"
    assert rows["lpips"].status == "needs the extra 'iqa': pip install 'livemoments-deploy[iqa]'"
    assert rows["fid_512"].status == "needs ground truth and pictures of at least 512x512 pixels"
