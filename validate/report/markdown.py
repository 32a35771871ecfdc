"""``summary.md``: the verdict, the reasons and the main numbers, for a pull request's comment or a job's summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from livemoments.validate.report.gate import gate, held_to_limits
from livemoments.validate.report.numbers import (
    MISSING,
    format_bytes,
    format_change,
    format_count,
    format_plain,
    format_seconds,
    format_small,
    format_value,
)
from livemoments.validate.report_data import LEVELS, Rung, ValidationReport

_REASONS = 10
_IMAGES = 5
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~&@])")


def summary_markdown(report: ValidationReport) -> str:
    """GitHub-flavoured Markdown, some dozen lines whatever the number of images."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: ValidationReport) -> Iterator[str]:
    reasons = gate(report)
    held = len(held_to_limits(report))
    verdict = f"failed: {format_count(len(reasons), 'reason')}" if reasons else "passed"
    yield f"## {'❌' if reasons else '✅'} {_text(report.bundle.name)}: validation {verdict}"
    yield ""
    yield f"{format_count(held, 'number')} held against limits. {_about(report)}"
    if reasons:
        yield ""
        yield from (f"- {_text(reason)}" for reason in reasons[:_REASONS])
        if len(reasons) > _REASONS:
            yield f"- and {len(reasons) - _REASONS} more"
    for suspect in () if report.bisection is None else report.bisection.suspects[:1]:
        place = " → ".join(filter(None, (suspect.stage, suspect.block, suspect.module, suspect.op)))
        yield ""
        yield (
            f"First divergence: **{_text(place)}**, relative error {format_small(suspect.rel_l2)} "
            f"(limit {format_small(suspect.limit)}, before it {format_small(suspect.before)})."
        )
    yield from _table(("Parity", "compared", "worst relative error", "failed"), _parity_rows(report.ladder))
    yield from _table(("Quality", "ours", "input", "images"), _quality_rows(report))
    yield from _table(("Cost", "value"), _cost_rows(report))
    yield from _table(("Against the baseline", "before", "now", "change"), _baseline_rows(report))
    failed = [image for image in report.images if image.status == "failed"]
    yield from _table(("Failed image", "why"), ((image.name, image.error or "") for image in failed[:_IMAGES]))
    if len(failed) > _IMAGES:
        yield f"\nand {len(failed) - _IMAGES} more failed images."


def _about(report: ValidationReport) -> str:
    bundle = report.bundle
    parts = [f"{bundle.target} {bundle.precision}", f"policy {bundle.policy}", f"on {bundle.provider}"]
    if report.dataset is not None:
        parts.append(f"{format_count(report.dataset.images, 'image')} of {report.dataset.name}")
    if processor := report.machine.get("processor"):
        parts.append(str(processor))
    return f"{_text(', '.join(parts))}."


def _parity_rows(ladder: Sequence[Rung]) -> Iterator[tuple[str, ...]]:
    for level in LEVELS:
        rungs = [rung for rung in ladder if rung.level == level]
        if rungs:
            errors = [rung.rel_l2 for rung in rungs]
            # None is not finite, and worse than any number.
            worst = None if None in errors else max(error for error in errors if error is not None)
            failed = sum(rung.status == "fail" for rung in rungs)
            yield level, str(len(rungs)), format_small(worst), str(failed)


def _quality_rows(report: ValidationReport) -> Iterator[tuple[str, ...]]:
    for metric in report.metrics:
        if metric.mean is None:
            yield metric.title, metric.status, MISSING, "0"
        else:
            ours = f"{format_value(metric.mean, metric.unit)} {'↑' if metric.better == 'higher' else '↓'}"
            yield metric.title, ours, format_value(metric.input_mean, metric.unit), str(metric.count)


def _cost_rows(report: ValidationReport) -> Iterator[tuple[str, str]]:
    yield "bundle", format_bytes(report.bundle.bytes)
    if (cost := report.cost) is None:
        return
    if cost.tile_s:
        yield "a tile, " + ", ".join(cost.tile_s), ", ".join(map(format_seconds, cost.tile_s.values()))
    if cost.photo_s is not None:
        yield f"a photo of {cost.photo}", format_seconds(cost.photo_s)
    for memory in cost.memory:
        if memory.bytes is not None:
            yield f"memory: {memory.kind}", format_bytes(memory.bytes)
    if cost.energy_j is not None:
        yield "energy per tile", f"{format_plain(cost.energy_j)} J"


def _baseline_rows(report: ValidationReport) -> Iterator[tuple[str, ...]]:
    worse = [difference for difference in report.baseline if difference.status == "fail"]
    for difference in worse[:_REASONS]:
        before, now = difference.before, difference.now
        yield (
            difference.name,
            format_value(before, difference.unit),
            format_value(now, difference.unit),
            format_change(before, now, difference.unit),
        )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    lines = [f"| {' | '.join(map(_text, row))} |" for row in rows]
    if lines:
        yield ""
        yield f"| {' | '.join(head)} |"
        yield f"|{' --- |' * len(head)}"
        yield from lines


def _text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
