"""The CI gate: every reason for which a bundle must not ship. None: it may."""

from __future__ import annotations

from collections.abc import Iterator

from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report.numbers import format_limit, format_value
from livemoments.validate.report_data import Check, Difference, Rung, ValidationReport

__all__ = ["FAILED_IMAGES", "compare_with_baseline", "gate", "held_to_limits"]

FAILED_IMAGES = "images.failed"
"""The check that counts them; it may allow some."""
_SHOWN = 3


def gate(report: ValidationReport) -> list[str]:
    """Every reason for which the gate closes, one line each; empty if it opens.

    What :meth:`ValidationReport.failures` says, with the numbers. A bisection that found a fault although no rung
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
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        reasons.append(f"{len(lost)} of {len(report.images)} images failed: {', '.join(lost[:_SHOWN])}{more}")
    if not reasons and not held_to_limits(report):
        reasons.append("nothing was held against a limit: name a checkpoint, a recording or a data set")
    return reasons


def held_to_limits(report: ValidationReport) -> list[Check | Rung | Difference]:
    """What has a verdict. A rung whose check (``parity.LEVEL.NAME.SIZE``) has the same verdict counts once."""
    said = {(check.name, check.status) for check in report.checks}
    rungs = [
        rung for rung in report.ladder if (f"parity.{rung.level}.{rung.name}.{rung.size}", rung.status) not in said
    ]
    entries: list[Check | Rung | Difference] = [*report.checks, *rungs, *report.baseline]
    return [entry for entry in entries if entry.status != "info"]


def _reason(entry: Check | Rung | Difference) -> str:
    return ": ".join(filter(None, _parts(entry)))


def _parts(entry: Check | Rung | Difference) -> Iterator[str]:
    if isinstance(entry, Check):
        yield entry.name
        limit = format_limit(entry.limit, entry.unit, entry.better)
        yield f"{format_value(entry.value, entry.unit)}{f' (limit {limit})' if limit else ''}"
        yield entry.detail
    elif isinstance(entry, Rung):
        yield f"{entry.level} {entry.name} {entry.size}"
        of_psnr = entry.limit_of == "psnr_db"
        unit, value = ("dB", entry.psnr_db) if of_psnr else ("rel_l2", entry.rel_l2)
        yield f"{format_value(value, unit)} (limit {format_limit(entry.limit, unit, 'higher' if of_psnr else 'lower')})"
        yield entry.where
    else:
        yield f"baseline, {entry.name}"
        yield f"{format_value(entry.before, entry.unit)} → {format_value(entry.now, entry.unit)}"
        yield entry.detail
