"""The CI gate: every reason for which a bundle must not ship. None: it may."""

from __future__ import annotations

from livemoments.validate.report.numbers import first_few, format_measured, format_value
from livemoments.validate.report_data import Check, Difference, Rung, ValidationReport

FAILED_IMAGES = "images.failed"
"""The check that counts them; it may allow some."""
_SHOWN = 3


def gate(report: ValidationReport) -> list[str]:
    """Every reason for which the gate closes, one line each; empty if it opens.

    A bisection that found a fault although no rung
    failed, images that failed although no check counts them, and a report in which nothing was held against anything
    close it too.
    """
    failed = [entry for entry in held_to_limits(report) if entry.status == "fail"]
    reasons = [_reason(entry) for entry in failed]
    if report.bisection is not None and not any(rung.status == "fail" for rung in report.ladder):
        for suspect in report.bisection.suspects:
            place = suspect.module or suspect.block or suspect.node or suspect.stage
            reasons.append(f"bisection: {suspect.stage} leaves the reference at {place}")
    lost = [image.name for image in report.images if image.status == "failed"]
    if lost and not any(check.name == FAILED_IMAGES for check in report.checks):
        reasons.append(f"{len(lost)} of {len(report.images)} images failed: {first_few(lost, _SHOWN)}")
    if not reasons and not held_to_limits(report):
        reasons.append("nothing was held against a limit: name a checkpoint, a recording or a data set")
    return reasons


def held_to_limits(report: ValidationReport) -> list[Check | Rung | Difference]:
    """What has a verdict. A rung whose check (``parity.LEVEL.NAME.SIZE``) has the same verdict counts once."""
    checked = {(check.name, check.status) for check in report.checks}
    rungs = [
        rung for rung in report.ladder if (f"parity.{rung.level}.{rung.name}.{rung.size}", rung.status) not in checked
    ]
    entries: list[Check | Rung | Difference] = [*report.checks, *rungs, *report.baseline]
    return [entry for entry in entries if entry.status != "info"]


def _reason(entry: Check | Rung | Difference) -> str:
    if isinstance(entry, Check):
        parts = (entry.name, format_measured(entry), entry.detail)
    elif isinstance(entry, Rung):
        parts = (f"{entry.level} {entry.name} {entry.size}", format_measured(entry), entry.where)
    else:
        before, now = (format_value(value, entry.unit) for value in (entry.before, entry.now))
        parts = (f"baseline, {entry.name}", f"{before} → {now}", entry.detail)
    return ": ".join(filter(None, parts))
