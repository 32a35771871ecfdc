"""The gate: every reason that closes it, and no way to open it by leaving something out."""

from __future__ import annotations

import msgspec
import pytest
from report_samples import sample_report

from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report.gate import gate
from livemoments.validate.report_data import (
    Bisection,
    Check,
    ImageResult,
    Rung,
    ValidationReport,
)

replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def report() -> ValidationReport:
    return sample_report(30)


# The gate.


def test_a_good_report_opens_the_gate(report: ValidationReport) -> None:
    assert gate(report) == []
    assert report.passed


def test_a_faulty_one_closes_it_with_its_numbers() -> None:
    reasons = gate(sample_report(3, faulty=True, failed=(1,)))
    assert "parity.network.restoration.1024x1024: 3.0e-1 (limit ≤ 1e-1): point 5" in reasons
    assert "images.failed: 1 (limit ≤ 0): 1 of 3 images could not be restored" in reasons
    assert any(reason.startswith("block restoration.block3 1024x1024: ") for reason in reasons)


def test_every_failure_of_the_report_is_a_reason() -> None:
    bad = sample_report(3, faulty=True, failed=(1,))
    bad = replace(bad, baseline=compare_with_baseline(bad, sample_report(3)))
    text = "\n".join(gate(bad))
    assert not bad.passed
    for check in bad.checks:
        assert (check.name in text) == (check.status == "fail"), check.name
    for difference in bad.baseline:
        assert (f"baseline, {difference.name}:" in text) == (difference.status == "fail"), difference.name


def test_a_rung_and_its_check_are_one_reason() -> None:
    rung = Rung(
        level="network", name="flow", size="8x8", rel_l2=2.0, sqnr_db=None, cosine=None, max_abs=None, limit=1.0,
        status="fail",
    )  # fmt: skip
    check = Check(name="parity.network.flow.8x8", value=2.0, limit=1.0, unit="rel_l2", better="lower", status="fail")
    base = replace(sample_report(1), ladder=(rung,), bisection=None)
    assert len(gate(replace(base, checks=(check,)))) == 1
    # A check that disagrees with its rung must not hide it.
    assert gate(replace(base, checks=(replace(check, status="pass", value=0.5),))) == [
        "network flow 8x8: 2.0e0 (limit ≤ 1e0)"
    ]


def test_a_report_that_checked_nothing_closes_the_gate(report: ValidationReport) -> None:
    empty = replace(report, checks=(), ladder=(), images=(), bisection=None)
    assert empty.passed  # nothing failed
    assert gate(empty) == ["nothing was held against a limit: name a checkpoint, a recording or a data set"]
    info = tuple(replace(check, status="info") for check in report.checks)
    assert len(gate(replace(empty, checks=info))) == 1


def test_a_bisection_that_found_a_fault_closes_the_gate(report: ValidationReport) -> None:
    found = sample_report(1, faulty=True).bisection
    assert isinstance(found, Bisection)
    assert gate(replace(report, bisection=found)) == [
        "bisection: restoration leaves the reference at transformer_blocks.3.ff.net.0"
    ]


def test_failed_images_close_the_gate_unless_a_check_allows_them(report: ValidationReport) -> None:
    images = tuple(
        ImageResult(name=f"{number}.png", status="failed", error="damaged") if number < 5 else image
        for number, image in enumerate(report.images)
    )
    uncounted = replace(
        report, images=images, checks=tuple(check for check in report.checks if check.name != "images.failed")
    )
    assert gate(uncounted) == ["5 of 30 images failed: 0.png, 1.png, 2.png and 2 more"]
    assert gate(replace(report, images=images)) == []  # its check images.failed passed
