"""How far two runs of one thing may differ: the numbers behind ``--baseline`` (reasons: docs/reports.md)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from livemoments.validate.report_data import Better


@dataclass(frozen=True, slots=True)
class Noise:
    """What counts as noise, and no regression.

    Attributes:
        parity_factor: an error may grow by this factor: other threads and processors round differently.
        parity_floor_rel_l2: errors up to here are float32 rounding, whatever they were before.
        parity_db: a PSNR against the reference may drop by this much.
        ceiling_db: above this, two PSNRs are equal; an exact result counts as this.
        standard_errors: a mean loss of quality below this many standard errors of the paired differences is noise.
        quality_floor_db, quality_ceiling_db: a mean loss below the one is never a regression, above the other always.
        quality_floor, quality_ceiling: the same for metrics without a unit, as a fraction of their scale.
        latency_floor, latency_ceiling: the same for latency, as a fraction of p50; between them p90 over p50 decides.
        latency_floor_s: and differences up to this many seconds are never one.
        single_run: latency of which there is one run only may grow by this fraction.
        memory, size: peaks and bundle sizes may grow by this fraction.
        other: checks in other units may become worse by this fraction.
    """

    parity_factor: float = 1.25
    parity_floor_rel_l2: float = 1e-6
    parity_db: float = 0.5
    ceiling_db: float = 80.0
    standard_errors: float = 3.0
    quality_floor_db: float = 0.02
    quality_ceiling_db: float = 0.5
    quality_floor: float = 0.005
    quality_ceiling: float = 0.1
    latency_floor: float = 0.10
    latency_ceiling: float = 0.50
    latency_floor_s: float = 0.001
    single_run: float = 0.25
    memory: float = 0.05
    size: float = 0.01
    other: float = 0.10


NOISE = Noise()
_SIMILARITY_SCALE = 0.02


def quality_scale(mean: float, better: Better) -> float:
    """What a change of a metric without a unit is measured against.

    A distance, or a score of any size: its mean. A similarity, which ends at 1: what its mean lacks of 1 (at least
    0.02), because 0.98 against 0.99 is half of the way.
    """
    if better == "higher" and 0 <= mean <= 1:
        return max(1 - mean, _SIMILARITY_SCALE)
    return abs(mean)


def allowed_loss(losses: Sequence[float], *, unit: str, mean: float, better: Better) -> float:
    """The mean loss over paired images that is still noise, in the metric's unit.

    ``standard_errors`` standard errors of the mean, within the floor and the ceiling. One image has no spread: the
    ceiling.

    Args:
        losses: per image, how much worse it became (negative: better); may be empty.
        unit: of the metric, ``dB`` or ``1``.
        mean: of the metric, in the earlier run.
        better: which way is good.
    """
    if unit == "dB":
        floor, ceiling = NOISE.quality_floor_db, NOISE.quality_ceiling_db
    else:
        scale = quality_scale(mean, better)
        floor, ceiling = NOISE.quality_floor * scale, NOISE.quality_ceiling * scale
    if len(losses) < 2:
        return ceiling
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    return min(max(NOISE.standard_errors * error, floor), ceiling)


def allowed_slowdown(p50_s: float, *spreads: tuple[float, float]) -> float:
    """Seconds by which a p50 may grow: the larger of the runs' own spreads, within the floor and the ceiling.

    Args:
        p50_s: of the earlier run.
        spreads: (p50, p90) of both runs.
    """
    share = max((p90 / p50 - 1 for p50, p90 in spreads if p50 > 0), default=0.0)
    share = min(max(share, NOISE.latency_floor), NOISE.latency_ceiling)
    return max(share * p50_s, NOISE.latency_floor_s)
