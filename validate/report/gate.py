"""The CI gate: every reason for which a bundle must not ship. None: it may."""

from __future__ import annotations

import msgspec

from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report_data import Check, Difference, Rung, ValidationReport

__all__ = ["compare_with_baseline", "gate", "held_to_limits"]

_FAILED_CHECK = "images.failed"
_SHOWN = 3


def gate(report: ValidationReport) -> list[str]:
    """Every reason for which the gate closes, one line each; empty if it opens.

    More than :meth:`ValidationReport.failures`: a bisection that found a fault although no rung failed, images that
    failed although no check counts them, and a report in which nothing was held against anything close it too.
    """
    reasons = [line for line in report.failures() if line not in _said_by_checks(report)]
    if report.bisection is not None and not any(rung.status == "fail" for rung in report.ladder):
        for suspect in report.bisection.suspects:
            place = suspect.module or suspect.block or suspect.node or suspect.stage
            reasons.append(f"bisection: {suspect.stage} leaves the reference at {place}")
    failed = [image.name for image in report.images if image.status == "failed"]
    if failed and not any(check.name == _FAILED_CHECK for check in report.checks):
        more = f" and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        reasons.append(f"{len(failed)} of {len(report.images)} images failed: {', '.join(failed[:_SHOWN])}{more}")
    if not reasons and not held_to_limits(report):
        reasons.append("nothing was held against a limit: name a checkpoint, a recording or a data set")
    return reasons


def held_to_limits(report: ValidationReport) -> list[Check | Rung | Difference]:
    """What has a verdict; a rung that is also a check (``parity.LEVEL.NAME.SIZE``) counts once."""
    names = {check.name for check in report.checks}
    rungs = [rung for rung in report.ladder if _as_check(rung) not in names]
    return [entry for entry in (*report.checks, *rungs, *report.baseline) if entry.status != "info"]


def _said_by_checks(report: ValidationReport) -> set[str]:
    """The lines of failed rungs that a failed check says already."""
    failed = {check.name for check in report.checks if check.status == "fail"}
    same = tuple(rung for rung in report.ladder if _as_check(rung) in failed)
    return set(msgspec.structs.replace(report, checks=(), ladder=same, baseline=()).failures())


def _as_check(rung: Rung) -> str:
    return f"parity.{rung.level}.{rung.name}.{rung.size}"
