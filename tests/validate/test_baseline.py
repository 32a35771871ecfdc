"""--baseline: what became worse beyond noise fails, and only that; the rule behind it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from report_samples import MEBI, sample_report

from livemoments.validate.report import baseline_cost
from livemoments.validate.report import noise as noise_module
from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report.gate import gate
from livemoments.validate.report.noise import NOISE, Noise, allowed_loss, allowed_slowdown, quality_scale
from livemoments.validate.report_data import (
    Check,
    Cost,
    DatasetInfo,
    Difference,
    Memory,
    Metric,
    ValidationReport,
)

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    return sample_report(30)


def cost_of(report: ValidationReport) -> Cost:
    assert report.cost is not None
    return report.cost


def failed(differences: tuple[Difference, ...]) -> dict[str, str]:
    return {difference.name: difference.detail for difference in differences if difference.status == "fail"}


def noted(differences: tuple[Difference, ...]) -> dict[str, str]:
    return {difference.name: difference.detail for difference in differences if difference.status == "info"}


def with_metric(report: ValidationReport, name: str, change: np.ndarray) -> ValidationReport:
    """The report with a metric of every image changed, and its mean."""
    images = tuple(
        replace(image, metrics=image.metrics | {name: float(image.metrics[name] or 0) + float(by)})
        for image, by in zip(report.images, change, strict=True)
    )
    values = [image.metrics[name] for image in images]
    metrics = tuple(
        replace(metric, mean=float(np.mean(np.array(values, float)))) if metric.name == name else metric
        for metric in report.metrics
    )
    return replace(report, images=images, metrics=metrics)


# The baseline: nothing changed.


def test_the_same_run_twice_is_no_regression(report: ValidationReport) -> None:
    differences = compare_with_baseline(report, report)
    assert failed(differences) == {}
    assert noted(differences) == {}
    assert len(differences) > 40
    assert gate(replace(report, baseline=differences)) == []


@pytest.mark.parametrize("seed", range(5))
def test_another_run_on_the_same_machine_is_no_regression(report: ValidationReport, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def shaken(value: float, by: float) -> float:
        return value * float(1 + rng.uniform(-by, by))

    cost = cost_of(report)
    again = with_metric(report, "psnr_y", rng.normal(0, 0.05, 30))
    again = replace(
        again,
        ladder=tuple(replace(rung, rel_l2=shaken(rung.rel_l2 or 0, 0.1)) for rung in report.ladder),
        cost=replace(
            cost,
            stages=tuple(replace(stage, p50_s=shaken(stage.p50_s, 0.04)) for stage in cost.stages),
            memory=tuple(
                replace(memory, bytes=None if memory.bytes is None else int(shaken(memory.bytes, 0.03)))
                for memory in cost.memory
            ),
        ),
    )
    assert failed(compare_with_baseline(again, report)) == {}


# Parity.


def test_a_larger_error_is_a_regression_even_within_its_limit(report: ValidationReport) -> None:
    def changed(factor: float) -> ValidationReport:
        ladder = tuple(
            replace(rung, rel_l2=(rung.rel_l2 or 0) * factor) if rung.name == "motion" else rung
            for rung in report.ladder
        )
        return replace(report, ladder=ladder)

    assert failed(compare_with_baseline(changed(1.2), report)) == {}
    assert set(failed(compare_with_baseline(changed(1.3), report))) == {
        "ladder network motion 512x512",
        "ladder network motion 1024x1024",
    }
    assert failed(compare_with_baseline(changed(0.1), report)) == {}


def test_rounding_is_no_regression_wherever_it_started(report: ValidationReport) -> None:
    def only(error: float | None, status: str = "pass") -> ValidationReport:
        rung = replace(report.ladder[0], rel_l2=error, status=status)
        return replace(report, ladder=(rung,), checks=())

    assert failed(compare_with_baseline(only(9e-7), only(0.0))) == {}
    assert failed(compare_with_baseline(only(9e-7), only(2e-7))) == {}
    assert len(failed(compare_with_baseline(only(1.1e-6), only(0.0)))) == 1
    assert "not finite now" in str(failed(compare_with_baseline(only(None, "fail"), only(0.0))))


def test_the_photo_is_compared_by_its_psnr(report: ValidationReport) -> None:
    def only(psnr: float | None, status: str = "pass") -> ValidationReport:
        rung = replace(report.ladder[-1], psnr_db=psnr, status=status)
        assert rung.limit_of == "psnr_db"
        return replace(report, ladder=(rung,), checks=())

    assert failed(compare_with_baseline(only(44.6), only(45.0))) == {}
    assert len(failed(compare_with_baseline(only(44.4), only(45.0)))) == 1
    assert failed(compare_with_baseline(only(45.0), only(44.0))) == {}
    # Equal pictures have no finite PSNR; past 80 dB nobody sees a difference.
    assert failed(compare_with_baseline(only(92.0), only(None))) == {}
    assert len(failed(compare_with_baseline(only(60.0), only(None)))) == 1
    assert failed(compare_with_baseline(only(None), only(60.0))) == {}
    assert len(failed(compare_with_baseline(only(None, "fail"), only(60.0, "pass")))) == 1


# Quality.


def test_noise_of_the_images_is_no_regression_and_a_real_loss_is(report: ValidationReport) -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.3, 30)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(30)
    for factor, regresses in ((2.5, False), (3.5, True)):
        found = failed(compare_with_baseline(with_metric(report, "psnr_y", noise - factor * error), report))
        assert ("quality psnr_y" in found) == regresses, found
    # The same loss on every image is no noise, however small.
    assert "quality psnr_y" in failed(compare_with_baseline(with_metric(report, "psnr_y", np.full(30, -0.03)), report))
    assert failed(compare_with_baseline(with_metric(report, "psnr_y", np.full(30, -0.01)), report)) == {}
    # However large the noise, half a decibel in the mean is a loss.
    wild = rng.normal(0, 8, 30)
    wild += -0.6 - wild.mean()
    assert "quality psnr_y" in failed(compare_with_baseline(with_metric(report, "psnr_y", wild), report))
    assert failed(compare_with_baseline(with_metric(report, "psnr_y", np.full(30, 3.0)), report)) == {}


def test_metrics_of_which_less_is_better_are_turned_round(report: ValidationReport) -> None:
    assert failed(compare_with_baseline(with_metric(report, "musiq_re", np.full(30, -0.02)), report)) == {}
    found = failed(compare_with_baseline(with_metric(report, "musiq_re", np.full(30, 0.02)), report))
    assert list(found) == ["quality musiq_re"]
    assert "30 paired images" in found["quality musiq_re"]


def test_quality_is_paired_so_that_a_lost_image_changes_no_mean(report: ValidationReport) -> None:
    worst = min(report.images, key=lambda image: image.metrics["psnr_y"] or 0)
    rest = replace(worst, status="failed", metrics={}, input_metrics={}, error="damaged")
    now = replace(report, images=tuple(rest if image is worst else image for image in report.images))
    now = replace(now, metrics=tuple(replace(m, mean=40.0) if m.name == "psnr_y" else m for m in now.metrics))
    differences = compare_with_baseline(now, report)
    assert failed(differences) == {"images failed": f"fine before, failed now: {worst.name}"}
    (psnr,) = (difference for difference in differences if difference.name == "quality psnr_y")
    assert psnr.before == psnr.now
    assert "29 paired images" in psnr.detail


def test_a_metric_of_the_whole_set_is_compared_by_its_number(report: ValidationReport) -> None:
    def with_fid(value: float) -> ValidationReport:
        fid = Metric(name="fid_512", title="FID", better="lower", unit="1", count=30, mean=value, std=0.0)
        return replace(report, metrics=(*report.metrics[:3], fid))

    assert failed(compare_with_baseline(with_fid(4.3), with_fid(4.0))) == {}
    assert list(failed(compare_with_baseline(with_fid(4.5), with_fid(4.0)))) == ["quality fid_512"]


def test_what_is_not_measured_any_more_fails(report: ValidationReport) -> None:
    unweighted = tuple(
        replace(metric, mean=None, std=None, count=0, status="weights not found: x")
        if metric.name == "musiq_re"
        else metric
        for metric in report.metrics
    )
    found = failed(compare_with_baseline(replace(report, metrics=unweighted), report))
    assert found == {"quality musiq_re": "was measured before, is not now: weights not found: x"}
    assert "quality musiq_re" in failed(compare_with_baseline(replace(report, metrics=report.metrics[:3]), report))

    assert list(failed(compare_with_baseline(replace(report, cost=None), report))) == ["cost"]
    no_blocks = tuple(rung for rung in report.ladder if rung.level != "block")
    assert failed(compare_with_baseline(replace(report, ladder=no_blocks), report)) == {
        "ladder block": "was measured before, is not now: the whole level, 16 rungs"
    }
    one_less = replace(report, ladder=report.ladder[1:])
    assert list(failed(compare_with_baseline(one_less, report))) == ["ladder block reference.block0 1024x1024"]
    assert list(failed(compare_with_baseline(replace(report, checks=report.checks[1:]), report))) == [
        f"check {report.checks[0].name}"
    ]
    assert set(failed(compare_with_baseline(replace(report, images=report.images[2:]), report))) == {"images missing"}
    assert "images" in failed(compare_with_baseline(replace(report, images=()), report))
    unlimited = tuple(
        replace(c, status="info", limit=None) if c.name == "self.tile_order" else c for c in report.checks
    )
    assert failed(compare_with_baseline(replace(report, checks=unlimited), report)) == {
        "check self.tile_order": "had a limit before, has none now"
    }
    cost = cost_of(report)
    assert list(failed(compare_with_baseline(replace(report, cost=replace(cost, memory=())), report))) == [
        "memory peak_rss"
    ]
    assert set(
        failed(compare_with_baseline(replace(report, cost=replace(cost, stages=cost.stages[1:], photo_s=None)), report))
    ) == {
        "latency flow 1024x1024",
        "latency photo",
    }


def test_more_than_before_is_no_failure(report: ValidationReport) -> None:
    less = replace(report, ladder=report.ladder[:3], checks=report.checks[:2], metrics=report.metrics[:1], cost=None)
    assert failed(compare_with_baseline(report, less)) == {}


# Checks that nothing else holds.


@pytest.mark.parametrize(
    ("unit", "before", "fine", "worse"),
    [("count", 3.0, 3.0, 4.0), ("rel_l2", 1e-3, 1.2e-3, 1.3e-3), ("1", 1.0, 1.09, 1.11)],
)
def test_checks_may_not_become_worse(
    report: ValidationReport, unit: str, before: float, fine: float, worse: float
) -> None:
    def only(value: float) -> ValidationReport:
        check = Check(name="self.x", value=value, limit=10.0, unit=unit, better="lower", status="pass")
        return replace(report, checks=(check,))

    assert failed(compare_with_baseline(only(fine), only(before))) == {}
    assert list(failed(compare_with_baseline(only(worse), only(before)))) == ["check self.x"]


def test_a_check_that_is_not_finite_now_fails(report: ValidationReport) -> None:
    good = Check(name="self.x", value=1.0, limit=2.0, unit="1", better="lower", status="pass")
    bad = replace(good, value=None, status="fail")
    found = compare_with_baseline(replace(report, checks=(bad,)), replace(report, checks=(good,)))
    assert failed(found) == {"check self.x": "passed before, fails now"}


# Cost.


def test_latency_may_grow_by_its_own_spread(report: ValidationReport) -> None:
    def timed(p50: float, spread: float) -> ValidationReport:
        cost = cost_of(report)
        stage = replace(cost.stages[0], p50_s=p50, p90_s=p50 * spread, p99_s=p50 * spread)
        return replace(report, cost=replace(cost, stages=(stage,)))

    name = "latency flow 1024x1024"
    for now, spread, regresses in (
        (1.09, 1.02, False),  # within ten percent
        (1.12, 1.02, True),
        (1.25, 1.30, False),  # a noisy machine
        (1.35, 1.30, True),
        (1.45, 3.00, False),
        (1.55, 3.00, True),  # past half as slow again no noise is an excuse
        (0.50, 1.02, False),
    ):
        found = failed(compare_with_baseline(timed(now, spread), timed(1.0, 1.02)))
        assert (name in found) == regresses, (now, spread, found)
    # A tenth of a millisecond more of a third of a millisecond is the clock, not the engine.
    assert failed(compare_with_baseline(timed(4e-4, 1.0), timed(3e-4, 1.0))) == {}


def test_tiles_and_photos_are_timed_too(report: ValidationReport) -> None:
    slow = sample_report(30, slow=1.6)
    found = failed(compare_with_baseline(slow, report))
    assert {"latency tile", "latency photo", "latency restoration 1024x1024"} <= set(found)
    assert all(name.startswith("latency") for name in found)
    other = replace(slow, cost=replace(cost_of(slow), photo="800x600"))
    assert "another photo" in noted(compare_with_baseline(other, report))["latency photo"]


@pytest.mark.parametrize(
    "change",
    [
        {"machine": {"processor": "another", "cores": 2, "system": "Linux x86_64"}},
        {"settings": {"steps": 3, "tile": "1024x1024", "batch": 1}},
    ],
)
def test_times_of_another_machine_or_setting_are_not_compared_and_it_says_so(
    report: ValidationReport, change: dict[str, object]
) -> None:
    slow = replace(sample_report(30, slow=5.0), **change)
    differences = compare_with_baseline(slow, report)
    assert failed(differences) == {}
    notes = noted(differences)
    assert "latency and memory are not compared" in notes["machine"]
    assert notes["latency tile"] == notes["memory peak_rss"] == "not compared"
    cpu = replace(slow.bundle, provider="cuda")
    assert "provider" in noted(compare_with_baseline(replace(slow, bundle=cpu), report))["machine"]


def test_memory_and_size_may_grow_a_little(report: ValidationReport) -> None:
    def sized(peak: int, size: int) -> ValidationReport:
        peaks = (Memory(kind="peak_rss", bytes=peak * MEBI, method="x"),)
        files = report.bundle.files | {"motion": size * MEBI}
        bundle = replace(report.bundle, bytes=sum(files.values()), files=files)
        return replace(report, cost=replace(cost_of(report), memory=peaks), bundle=bundle)

    old = sized(1000, 9)
    assert failed(compare_with_baseline(sized(1049, 40), old)) == {}
    found = failed(compare_with_baseline(sized(1060, 90), old))
    assert set(found) == {"memory peak_rss", "bundle bytes"}
    assert "most of all motion" in found["bundle bytes"]


# What cannot be compared.


def test_another_kind_of_bundle_keeps_quality_only(report: ValidationReport) -> None:
    fp16 = replace(report, bundle=replace(report.bundle, precision="fp16", recipe=None, bytes=1), ladder=(), cost=None)
    worse = with_metric(fp16, "psnr_y", np.full(30, -1.0))
    differences = compare_with_baseline(worse, report)
    assert list(failed(differences)) == ["quality psnr_y"]
    assert "precision was int8, is fp16" in noted(differences)["bundle"]


def test_other_images_keep_the_engine_only(report: ValidationReport) -> None:
    assert isinstance(report.dataset, DatasetInfo)
    other = with_metric(report, "psnr_y", np.full(30, -9.0))
    other = replace(other, dataset=replace(report.dataset, sha256="11" * 32), images=other.images[5:])
    differences = compare_with_baseline(other, report)
    assert failed(differences) == {}
    assert "quality is not compared" in noted(differences)["dataset"]


def test_nothing_to_compare_is_a_failure(report: ValidationReport) -> None:
    assert isinstance(report.dataset, DatasetInfo)
    other = replace(
        report,
        bundle=replace(report.bundle, target="tensorrt"),
        dataset=replace(report.dataset, sha256="11" * 32),
        checks=(),
    )
    bare = replace(report, checks=(), ladder=())
    differences = compare_with_baseline(other, bare)
    assert list(failed(differences)) == ["baseline"]
    assert gate(replace(other, ladder=(), baseline=differences))


# The rule's numbers.


def test_the_rule_of_quality() -> None:
    assert allowed_loss([], unit="dB", mean=30, better="higher") == 0.5
    assert allowed_loss([0.1], unit="dB", mean=30, better="higher") == 0.5
    assert allowed_loss([0.1, 0.1], unit="dB", mean=30, better="higher") == 0.02
    losses = [0.0, 0.2, 0.1, -0.1]
    error = np.std(losses, ddof=1) / 2
    assert allowed_loss(losses, unit="dB", mean=30, better="higher") == pytest.approx(3 * error)
    assert quality_scale(0.95, "higher") == pytest.approx(0.05)
    assert quality_scale(0.999, "higher") == 0.02
    assert quality_scale(61.0, "higher") == 61.0
    assert quality_scale(0.08, "lower") == 0.08


def test_the_rule_of_latency() -> None:
    assert allowed_slowdown(2.0, (2.0, 2.1), (2.0, 2.4)) == pytest.approx(0.4)
    assert allowed_slowdown(2.0, (2.0, 2.1), (2.0, 2.1)) == pytest.approx(0.2)
    assert allowed_slowdown(2.0, (2.0, 9.0)) == pytest.approx(1.0)
    assert allowed_slowdown(0.0, (0.0, 0.0)) == NOISE.latency_floor_s


def test_the_numbers_decide(report: ValidationReport, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = sample_report(30, slow=1.3)
    assert failed(compare_with_baseline(slow, report))
    for module in (noise_module, baseline_cost):
        monkeypatch.setattr(module, "NOISE", Noise(latency_floor=0.35, single_run=0.35))
    assert failed(compare_with_baseline(slow, report)) == {}
