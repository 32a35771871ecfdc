"""From distances to rungs and checks: the worst of several, its limit, its verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from livemoments.types import Size
from livemoments.validate.ladder.tensor_distance import Distance
from livemoments.validate.report_data import Check, Level, Rung, finite_number

_NOTHING = Distance(math.nan, math.nan, math.nan, math.nan)


@dataclass
class WorstDistance:
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

    def rung(self, level: Level, name: str, size: Size | str, limit: float | None, *, note: str = "") -> Rung:
        """The rung; ``info`` without a limit, or if there was nothing to compare, of which ``note`` says why."""
        distance, where = self.distance, "; ".join(part for part in (self.where, note) if part)
        if distance is None:
            distance, limit = _NOTHING, None
            where = where or "nothing to compare was recorded"
        elif not math.isfinite(distance.rel_l2):
            where = f"{where}: not finite, or of another shape"
        value = getattr(distance, self.of)
        passed = limit is None or (value <= limit if self.of == "rel_l2" else value is not None and value >= limit)
        return Rung(
            level=level,
            name=name,
            size=str(size),
            rel_l2=finite_number(distance.rel_l2),
            sqnr_db=finite_number(distance.sqnr_db),
            cosine=finite_number(distance.cosine),
            max_abs=finite_number(distance.max_abs),
            psnr_db=finite_number(distance.psnr_db),
            limit=limit,
            limit_of=self.of,
            status="info" if limit is None else "pass" if passed else "fail",
            where=where,
        )


def held_to(name: str, value: float | None, limit: float | None, unit: str, detail: str) -> Check:
    """A check of a number of which less is better: NaN and what was not measured fail; ``info`` without a limit."""
    passed = limit is None or (value is not None and value <= limit)
    return Check(
        name=name,
        value=finite_number(value),
        limit=limit,
        unit=unit,
        better="lower",
        status="info" if limit is None else "pass" if passed else "fail",
        detail=detail,
    )
