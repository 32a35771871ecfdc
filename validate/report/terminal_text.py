"""A report for a terminal: a line for every rung and check, the quality, the cost, the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from livemoments.validate.report.gate import gate, held_to_limits
from livemoments.validate.report.numbers import format_bytes, format_measured, format_seconds, format_value
from livemoments.validate.report_data import LEVELS, Check, Cost, Metric, Rung, ValidationReport

_MARKS = {"pass": "ok", "fail": "FAIL", "info": ""}
_MOST_PER_LEVEL = 12
"""Rungs of a level that are listed besides those that failed: a full-size ladder has hundreds of blocks."""


def report_text(report: ValidationReport) -> str:
    """The report, some dozen lines."""
    return "\n".join(_lines(report))


def parity_line(rungs: Sequence[Rung]) -> str:
    """The ladder in one line."""
    held = [rung for rung in rungs if rung.limit is not None]
    failed = [rung for rung in held if rung.status == "fail"]
    photo = next((rung for rung in rungs if rung.level == "photo" and rung.name == "result"), None)
    parts = [f"{len(held) - len(failed)} of {len(held)} numbers within their limits"]
    if failed:
        parts.append(f"{failed[0].level} {failed[0].name} is not: {failed[0].where}")
    if photo is not None and photo.max_abs is not None:
        exact = photo.psnr_db is None
        parts.append(
            "the photo is the reference's to the last level"
            if exact
            else f"the photo within {photo.max_abs:.0f} of 255 levels, {format_value(photo.psnr_db, 'dB')}"
        )
    return "; ".join(parts)


def checks_line(checks: Sequence[Check]) -> str:
    """The engine's checks of itself, or of a device, in one line."""
    failed = [check for check in checks if check.status == "fail"]
    parts = [f"{len(checks) - len(failed)} of {len(checks)} kept"]
    return "; ".join([*parts, *(f"{check.name} is not: {check.detail or check.value}" for check in failed)])


def quality_line(metrics: Sequence[Metric]) -> str:
    """What was measured over the data set, in one line."""
    return "; ".join(_metric(metric) for metric in metrics if metric.mean is not None) or "nothing was measured"


def cost_line(cost: Cost) -> str:
    """The cost in one line."""
    parts = []
    if "p50" in cost.tile_s:
        parts.append(f"a tile {format_seconds(cost.tile_s['p50'])} (p90 {format_seconds(cost.tile_s.get('p90'))})")
    if cost.photo_s is not None:
        parts.append(f"a photo of {cost.photo} {format_seconds(cost.photo_s)}")
    parts += [f"{memory.kind} {format_bytes(memory.bytes)}" for memory in cost.memory if memory.bytes is not None]
    return ", ".join(parts)


def report_line(result: Rung | Check) -> str:
    """One rung or check in one line: verdict, name, value, limit."""
    return _line(result.status, _rung(result) if isinstance(result, Rung) else _check(result))


def _lines(report: ValidationReport) -> Iterator[str]:
    for level in LEVELS:
        yield from _rungs([rung for rung in report.ladder if rung.level == level])
    for check in report.checks:
        if check.status != "info":
            yield report_line(check)
    if report.bisection is not None:
        for suspect in report.bisection.suspects:
            place = " → ".join(filter(None, (suspect.stage, suspect.block, suspect.module, suspect.node, suspect.op)))
            yield _line("fail", f"first divergence: {place}: {format_value(suspect.rel_l2, 'rel_l2')}")
        yield _line("info", report.bisection.detail or f"bisection: {report.bisection.boundaries} boundaries, no fault")
    for metric in report.metrics:
        yield _line("info", _metric(metric))
    if report.cost is not None:
        yield _line("info", cost_line(report.cost))
    held, reasons = len(held_to_limits(report)), gate(report)
    for difference in report.baseline:
        if difference.status == "fail":
            yield _line("fail", f"baseline: {difference.name}: {difference.detail}")
    if reasons:
        yield f"past a limit ({len(reasons)} of {held} numbers): do not ship this bundle"
    else:
        yield f"all limits kept ({held} numbers)"


def _rungs(rungs: list[Rung]) -> Iterator[str]:
    failed = [rung for rung in rungs if rung.status == "fail"]
    others = [rung for rung in rungs if rung.status != "fail"]
    for rung in [*failed, *others[:_MOST_PER_LEVEL]]:
        yield report_line(rung)
    if (more := len(others) - _MOST_PER_LEVEL) > 0:
        yield _line("info", f"and {more} more rungs of the level '{rungs[0].level}' within their limits")


def _line(status: str, text: str) -> str:
    return f"{_MARKS[status]:<4}  {text}"


def _rung(rung: Rung) -> str:
    head = f"{rung.level:<8} {rung.name:<30} {rung.size:<10}"
    if rung.rel_l2 is None and rung.psnr_db is None and rung.status == "info":
        return f"{head} {rung.where}"
    return f"{head} {format_measured(rung)}  {rung.where}".rstrip()


def _check(check: Check) -> str:
    line = f"{check.name:<50} {format_measured(check)}"
    return f"{line}  {check.detail}" if check.detail and (check.status == "fail" or check.value is None) else line


def _metric(metric: Metric) -> str:
    if metric.mean is None:
        return f"{metric.title}: {metric.status}"
    before = "" if metric.input_mean is None else f", the input {format_value(metric.input_mean, metric.unit)}"
    return f"{metric.title}: {format_value(metric.mean, metric.unit)}{before} ({metric.count} images)"
