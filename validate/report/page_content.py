"""What the page shows of a report, in the page's order: worst first, grouped, with the words of a legend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from livemoments.validate.report import charts
from livemoments.validate.report.gate import held_to_limits
from livemoments.validate.report.images_csv import PCR, metric_names
from livemoments.validate.report.numbers import (
    format_bytes,
    format_change,
    format_count,
    format_limit,
    format_seconds,
    format_signed,
    format_small,
    format_value,
)
from livemoments.validate.report_data import (
    Check,
    Difference,
    ImageResult,
    Metric,
    Rung,
    Status,
    ValidationReport,
)

Entry = TypeVar("Entry", Check, Rung, Difference)

_QUALIFIED = re.compile(r" \(|, | of | relative to ")
_SIDES = re.compile(r"(?<=\d)x(?=\d)")

_LEVEL_TITLES = {
    "block": "Blocks of the transformers, each fed with the reference's own inputs",
    "network": "Whole networks, each fed with the reference's own inputs",
    "step": "Sampling steps, errors carried from step to step",
    "tile": "Whole tiles, from the photos to decoded pixels",
    "photo": "The whole photo, blended and colour-corrected",
}
_MEMORY = {
    "peak_rss": "Peak memory of a fresh process (RSS)",
    "vram": "GPU memory, as the driver counts it (NVML)",
    "runtime_vram": "GPU memory, as the runtime counts it",
    "footprint": "Memory footprint, as macOS counts it",
}
TERMS = {
    "relative error": "‖engine − reference‖ / ‖reference‖, the relative L2 error: 1e-2 means that the difference is "
    "one hundredth as long as the reference's tensor.",
    "SQNR": "Signal to quantization noise, −20 log₁₀ of the relative error, in dB. 20 dB more is a tenth of the error.",
    "cosine": "Cosine of the angle between both tensors as vectors: 1 is the same direction.",
    "max abs": "The largest absolute difference of any element.",
    "PSNR": "Peak signal to noise ratio, in dB: of pictures, from the mean squared difference of their pixels. "
    "6 dB more is half of the difference.",
    "input": "The low-quality video frame, enlarged bicubically: what a metric says without any restoration.",
    "gain": "How much better than the enlarged input, in the metric's own unit.",
    "seam": "Gradient across tile borders over the gradient beside them: 1 means that no seam shows.",
    "shift": "How far the reference tiles were moved to follow the motion between frame and key photo, the mean in "
    "pixels.",
    "clamped": "Share of tiles whose moved reference tile would have left the photo and was held at its border.",
    "corners differ": "Share of tiles whose reference tile lies elsewhere than with the flow computed in float32.",
    "p50, p90, p99": "Half, nine tenths and 99 of 100 runs were at most this slow.",
    "info": "Measured, and no limit applies.",
}


@dataclass(frozen=True, slots=True)
class Group(Generic[Entry]):
    """Entries of one status or level under a line of their own."""

    title: str
    status: Status
    entries: Sequence[Entry]
    is_open: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the numbers at the top."""

    label: str
    value: str
    note: str
    status: Status = "info"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric, with its values over the images for the histogram."""

    metric: Metric
    values: Sequence[float]
    gain: str


@dataclass(frozen=True, slots=True)
class Column:
    """A metric's column in the images' table and the paper's."""

    name: str
    short: str
    title: str
    unit: str
    better: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that the templates do not compute themselves."""

    facts: Sequence[tuple[str, str]]
    figures: Sequence[Figure]
    held: int
    failed: int
    checks: Sequence[Group[Check]]
    ladder: Sequence[Group[Rung]]
    ladder_scale: charts.Scale
    metrics: Sequence[MetricRow]
    paper: Sequence[Column]
    image_columns: Sequence[Column]
    images: Sequence[ImageResult]
    has: dict[str, bool]
    latency_scale: charts.Scale
    memory_scale: charts.Scale
    differences: Sequence[Group[Difference]]


def make_page(report: ValidationReport) -> Page:
    """Arrange a report for reading."""
    judged, cost = held_to_limits(report), report.cost
    columns = _columns(report)
    published = {name for row in report.paper for name in row.values}
    return Page(
        facts=_facts(report),
        figures=_figures(report),
        held=len(judged),
        failed=sum(entry.status == "fail" for entry in judged),
        checks=_by_status(report.checks),
        ladder=_by_level(report.ladder),
        ladder_scale=charts.decades(
            value
            for rung in report.ladder
            for value in (rung.rel_l2, rung.limit if rung.limit_of == "rel_l2" else None)
        ),
        metrics=[_metric_row(metric, report.images) for metric in report.metrics],
        paper=[column for column in columns if column.name in published],
        image_columns=[column for column in columns if column.name in metric_names(report)],
        images=sorted(report.images, key=lambda image: image.status != "failed"),
        has={
            "parity": any(image.parity_psnr_db is not None for image in report.images),
            "seam": any(image.seam is not None for image in report.images),
            **{name: any(name in image.pcr for image in report.images) for name in PCR},
            "workers": len({image.worker for image in report.images}) > 1,
        },
        latency_scale=charts.from_zero(
            [*(stage.p99_s for stage in cost.stages), *cost.tile_s.values()] if cost else ()
        ),
        memory_scale=charts.from_zero(memory.bytes or 0 for memory in (cost.memory if cost else ())),
        differences=_by_status(report.baseline),
    )


def memory_title(kind: str) -> str:
    """A peak's kind in words."""
    return _MEMORY.get(kind, kind)


def size_text(size: str) -> str:
    """``1024x768`` as it is read, ``1024×768``; other text as it is."""
    return _SIDES.sub("×", size)


def short_title(title: str) -> str:
    """A metric's title for a column's head: ``PSNR (y, BT.601 studio)`` is ``PSNR``, a relative one ``MUSIQ rel.``"""
    name = _QUALIFIED.split(title, maxsplit=1)[0]
    return f"{name} rel." if "relative to" in title else name


def metric_value(value: float | None, unit: str) -> str:
    """A metric without its unit, which stands in the column's head."""
    return format_value(value, unit).removesuffix(" dB")


def _facts(report: ValidationReport) -> list[tuple[str, str]]:
    bundle, data = report.bundle, report.dataset
    facts = [
        ("Target", f"{bundle.target}, {bundle.precision}" + (f", recipe {bundle.recipe}" if bundle.recipe else "")),
        ("Reference policy", bundle.policy),
        ("Runs on", bundle.provider),
        ("Held against", report.reference or "no reference"),
    ]
    if data is not None:
        truth = "with" if data.has_truth else "without"
        facts.append(("Data set", f"{data.name}, {format_count(data.images, 'image')} {truth} ground truth"))
    if processor := report.machine.get("processor"):
        facts.append(("Machine", str(processor)))
    if report.created:
        facts.append(("Measured", report.created))
    if report.livemoments:
        facts.append(("livemoments", report.livemoments))
    return facts


def _figures(report: ValidationReport) -> list[Figure]:
    since = {difference.name: difference for difference in report.baseline}
    return [
        *_parity_figure(report.ladder),
        *_quality_figures(report, since),
        *_cost_figures(report, since),
        Figure("Bundle", format_bytes(report.bundle.bytes), _since(since.get("bundle bytes"))),
    ]


def _parity_figure(ladder: Sequence[Rung]) -> list[Figure]:
    photos = [rung for rung in ladder if rung.level == "photo" and rung.limit_of == "psnr_db"]
    if photos:
        worst = min(photos, key=lambda rung: (rung.status != "fail", rung.psnr_db or 1e9))
        equal = worst.psnr_db is None and worst.status != "fail"
        value = "equal" if equal else format_value(worst.psnr_db, "dB")
        return [Figure("Parity", value, _limit("photo", worst), worst.status)]
    networks = [rung for rung in ladder if rung.level == "network"]
    if not networks:
        return []
    worst = max(networks, key=lambda rung: (rung.status == "fail", rung.rel_l2 or 0.0))
    return [Figure("Parity", format_small(worst.rel_l2), _limit(worst.name, worst), worst.status)]


def _quality_figures(report: ValidationReport, since: dict[str, Difference]) -> list[Figure]:
    figures = []
    for metric in [metric for metric in report.metrics if metric.mean is not None][:2]:
        notes = [f"input {format_value(metric.input_mean, metric.unit)}" if metric.input_mean is not None else ""]
        notes.append(_since(since.get(f"quality {metric.name}")))
        label = short_title(metric.title)
        figures.append(Figure(label, format_value(metric.mean, metric.unit), "; ".join(filter(None, notes))))
    return figures


def _cost_figures(report: ValidationReport, since: dict[str, Difference]) -> list[Figure]:
    if (cost := report.cost) is None:
        return []
    figures = []
    if "p50" in cost.tile_s:
        note = _since(since.get("latency tile")) or "median of a whole tile"
        figures.append(Figure("Tile", format_seconds(cost.tile_s["p50"]), note))
    if cost.photo_s is not None:
        figures.append(
            Figure("Photo", format_seconds(cost.photo_s), f"{size_text(cost.photo)} px" if cost.photo else "")
        )
    for memory in [memory for memory in cost.memory if memory.bytes is not None][:1]:
        note = _since(since.get(f"memory {memory.kind}")) or memory.kind.replace("_", " ")
        figures.append(Figure("Peak memory", format_bytes(memory.bytes), note))
    return figures


def _since(difference: Difference | None) -> str:
    if difference is None or difference.before is None or difference.now is None:
        return ""
    return f"{format_change(difference.before, difference.now, difference.unit)} since baseline"


def _limit(what: str, rung: Rung) -> str:
    return f"{what}, limit {format_limit(rung.limit, rung.unit, rung.better)}" if rung.limit is not None else what


def _by_status(entries: Sequence[Entry]) -> list[Group[Entry]]:
    """Failed, passed, informative; short groups are open, failed ones always."""
    groups: list[Group[Entry]] = []
    statuses: tuple[tuple[Status, str, int], ...] = (
        ("fail", "failed", len(entries)),
        ("pass", "passed", 24),
        ("info", "for information", 8),
    )
    for status, title, most in statuses:
        own = [entry for entry in entries if entry.status == status]
        if own:
            groups.append(Group(f"{len(own)} {title}", status, own, len(own) <= most))
    return groups


def _by_level(ladder: Sequence[Rung]) -> list[Group[Rung]]:
    groups: list[Group[Rung]] = []
    for level, title in _LEVEL_TITLES.items():
        own = [rung for rung in ladder if rung.level == level]
        if not own:
            continue
        failed = any(rung.status == "fail" for rung in own)
        held = any(rung.status == "pass" for rung in own)
        status: Status = "fail" if failed else "pass" if held else "info"
        groups.append(Group(title, status, own, failed or len(own) <= 8))
    return groups


def _metric_row(metric: Metric, images: Sequence[ImageResult]) -> MetricRow:
    values = [value for image in images if (value := image.metrics.get(metric.name)) is not None]
    gain = None if metric.mean is None or metric.input_mean is None else metric.mean - metric.input_mean
    if gain is not None and metric.better == "lower":
        gain = -gain
    return MetricRow(metric, values, format_signed(gain, metric.unit))


def _columns(report: ValidationReport) -> list[Column]:
    """Of the report's metrics, then of those that only images or the paper have."""
    titles = [short_title(metric.title) for metric in report.metrics]
    columns = [
        Column(
            metric.name, short if titles.count(short) == 1 else metric.title, metric.title, metric.unit, metric.better
        )
        for metric, short in zip(report.metrics, titles, strict=True)
    ]
    names = [*metric_names(report), *sorted({name for row in report.paper for name in row.values})]
    others = dict.fromkeys(name for name in names if name not in {column.name for column in columns})
    return columns + [Column(name, name, name, "", "") for name in others]
