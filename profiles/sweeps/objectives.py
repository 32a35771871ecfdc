"""The numbers by which points are compared: by the table, the front, the page and ``--pick``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from livemoments.profiles.sweeps.report_data import Objective, Point
from livemoments.validate.quality.registry import select
from livemoments.validate.report.numbers import format_value
from livemoments.validate.report_data import Memory

LATENCY, WARM, MEMORY, SIZE, DROP, FIDELITY = "latency", "warm_latency", "memory", "size", "quality_drop", "fidelity"
MAIN_METRIC = "psnr_y"
"""The metric whose loss is ``quality_drop``."""
_KINDS = ("vram", "footprint", "peak_rss")
"""Of memory: the accelerator's where it was measured, else Apple's count of both, else the process'."""
DROP_SUFFIX = "_drop"


def known_objectives(metrics: Iterable[str]) -> tuple[Objective, ...]:
    """Every number that a sweep with these metrics can have.

    Raises:
        UsageError: a metric is unknown.
    """
    known = [
        Objective(name=LATENCY, title="A photo, with loading", unit="s", better="lower"),
        Objective(name=WARM, title="A photo, without loading", unit="s", better="lower"),
        Objective(name=MEMORY, title="Peak memory", unit="bytes", better="lower"),
        Objective(name=SIZE, title="Bundle size", unit="bytes", better="lower"),
        Objective(name=DROP, title="PSNR lost to exact fp32", unit="dB", better="lower"),
        Objective(name=FIDELITY, title="PSNR to the exact fp32 result", unit="dB", better="higher"),
    ]
    for spec in select(metrics):
        known.append(Objective(name=spec.name, title=spec.label, unit=spec.unit, better=spec.better))
        if spec.name != MAIN_METRIC:  # whose loss is quality_drop
            lost = f"{spec.label} lost to exact fp32"
            known.append(Objective(name=f"{spec.name}{DROP_SUFFIX}", title=lost, unit=spec.unit, better="lower"))
    return tuple(known)


def find_objectives(points: Sequence[Point]) -> tuple[Objective, ...]:
    """Those for which some point has a number."""
    qualities = [point.result.quality for point in points if point.result.quality is not None]
    metrics = dict.fromkeys(metric.name for quality in qualities for metric in quality.metrics)
    known = known_objectives(metrics or (MAIN_METRIC,))
    return tuple(one for one in known if any(value_of(point, one.name) is not None for point in points))


def value_of(point: Point, name: str) -> float | None:
    """A point's number; infinite for the fidelity of equal pictures, ``None`` where there is none."""
    quality, cost = point.result.quality, point.result.cost
    if quality is None or cost is None:
        return None
    if name == LATENCY:
        return median(cost.seconds) if cost.seconds else None
    if name == WARM:
        pairs = zip(cost.seconds, cost.load_seconds, strict=True)
        return median(seconds - load_s for seconds, load_s in pairs) if cost.seconds else None
    if name == MEMORY:
        peak = main_memory(cost.memory)
        return None if peak is None else peak.bytes
    if name == SIZE:
        return point.bytes
    if name == FIDELITY:
        return math.inf if quality.equal else quality.fidelity_db
    if name == DROP:
        return quality.drops.get(MAIN_METRIC)
    if name.endswith(DROP_SUFFIX):
        return quality.drops.get(name.removesuffix(DROP_SUFFIX))
    return next((metric.mean for metric in quality.metrics if metric.name == name), None)


def value_text(value: float | None, unit: str) -> str:
    """A number with its unit; infinite decibels are ``equal``."""
    return "equal" if value == math.inf else format_value(value, unit)


def point_title(point: Point) -> str:
    """The bundle and the values of the axes."""
    return " ".join([point.bundle, *(f"{name}={value}" for name, value in point.values.items())])


def main_memory(memory: Sequence[Memory]) -> Memory | None:
    """The peak that counts; ``None`` where none was measured."""
    measured = {one.kind: one for one in memory if one.bytes is not None}
    return next((measured[kind] for kind in _KINDS if kind in measured), None)


def compared_by(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """The objectives of the front: cost, and quality against the truth, or else against the exact result."""
    names = {objective.name for objective in objectives}
    quality = DROP if DROP in names else FIDELITY
    return tuple(name for name in (LATENCY, MEMORY, SIZE, quality) if name in names)


def beats(one: Point, other: Point, objectives: Sequence[Objective]) -> bool:
    """Whether a point is as good in every objective and better in one; what was not measured is worst."""
    worse = better = False
    for objective in objectives:
        mine, theirs = (_cost(point, objective) for point in (one, other))
        worse, better = worse or mine > theirs, better or mine < theirs
    return better and not worse


def front_of(points: Sequence[Point], objectives: Sequence[Objective]) -> frozenset[str]:
    """The ids of the points that no other beats; failed ones are not on it."""
    measured = [point for point in points if point.result.status == "ok"]
    return frozenset(point.id for point in measured if not any(beats(other, point, objectives) for other in measured))


def _cost(point: Point, objective: Objective) -> float:
    value = value_of(point, objective.name)
    if value is None:
        return math.inf
    return value if objective.better == "lower" else -value
