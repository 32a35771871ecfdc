"""From distances to rungs: the worst of several, its limit, its verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from livemoments.validate.ladder.measures import Distance
from livemoments.validate.report_data import Level, Rung


def finite(value: float | None) -> float | None:
    """The number as a report holds it: ``None`` for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


@dataclass
class Worst:
    """The worst of the distances of one rung. NaN is worse than any number.

    Attributes:
        of: ``rel_l2`` (more is worse) or ``psnr_db`` (less is worse).
    """

    of: Literal["rel_l2", "psnr_db"] = "rel_l2"
    distance: Distance | None = None
    where: str = ""

    def add(self, distance: Distance, where: str) -> None:
        """Take one more into account."""
        if self.distance is None or self._badness(distance) > self._badness(self.distance):
            self.distance, self.where = distance, where

    def _badness(self, distance: Distance) -> float:
        value = distance.rel_l2 if self.of == "rel_l2" or distance.psnr_db is None else -distance.psnr_db
        return math.inf if math.isnan(value) else value

    def rung(self, level: Level, name: str, size: str, limit: float | None, *, note: str = "") -> Rung:
        """The rung; ``info`` without a limit, or if there was nothing to compare."""
        if self.distance is None:
            return nothing(level, name, size, note or "nothing to compare was recorded")
        value = self.distance.rel_l2 if self.of == "rel_l2" else self.distance.psnr_db
        return rung_of(
            level,
            name,
            size,
            self.distance,
            limit,
            self.of,
            passed=limit is None or _keeps(value, limit, self.of),
            where="; ".join(part for part in (self.where, note) if part),
        )


def rung_of(
    level: Level,
    name: str,
    size: str,
    distance: Distance,
    limit: float | None,
    limit_of: Literal["rel_l2", "psnr_db"] = "rel_l2",
    *,
    passed: bool,
    where: str,
) -> Rung:
    """A rung whose verdict is known."""
    return Rung(
        level=level,
        name=name,
        size=size,
        rel_l2=finite(distance.rel_l2),
        sqnr_db=finite(distance.sqnr_db),
        cosine=finite(distance.cosine),
        max_abs=finite(distance.max_abs),
        psnr_db=finite(distance.psnr_db),
        limit=limit,
        limit_of=limit_of,
        status="info" if limit is None else "pass" if passed else "fail",
        where=where if math.isfinite(distance.rel_l2) else f"{where}: not finite, or of another shape",
    )


def nothing(level: Level, name: str, size: str, why: str) -> Rung:
    """A rung that could not be measured, and why."""
    return Rung(
        level=level,
        name=name,
        size=size,
        rel_l2=None,
        sqnr_db=None,
        cosine=None,
        max_abs=None,
        status="info",
        where=why,
    )


def _keeps(value: float | None, limit: float, of: str) -> bool:
    if value is None:
        return False
    return value >= limit if of == "psnr_db" else value <= limit
