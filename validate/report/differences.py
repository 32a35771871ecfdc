"""One number of an earlier run and what became of it."""

from __future__ import annotations

from livemoments.validate.report_data import Difference, Status

MISSING_NOW = "was measured before, is not now"


def held(
    name: str, before: float | None, now: float | None, allowed: float, unit: str, *, worse: bool, detail: str = ""
) -> Difference:
    """A number that was compared: ``worse`` is the verdict, ``allowed`` by how much it might have become worse."""
    status: Status = "fail" if worse else "pass"
    return Difference(name=name, before=before, now=now, allowed=allowed, unit=unit, status=status, detail=detail)


def noted(name: str, before: float | None, now: float | None, unit: str, why: str) -> Difference:
    """A number, or a fact, that cannot be held against the earlier one."""
    return Difference(name=name, before=before, now=now, allowed=0.0, unit=unit, status="info", detail=why)


def missing(name: str, before: float | None, unit: str, why: str = "") -> Difference:
    """A number that the earlier run has and the new one lacks: a gate must not open because a check was left out."""
    detail = f"{MISSING_NOW}: {why}" if why else MISSING_NOW
    return Difference(name=name, before=before, now=None, allowed=0.0, unit=unit, status="fail", detail=detail)
