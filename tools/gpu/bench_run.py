"""Runs the cases: every group within its share of the time, so that late groups are never starved by early ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from bench_cases import EXACT, Bench, Case, SkipCase
from bench_plan import GROUPS

NO_TIME = "not run: time"
Save = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Outcome:
    """What became of the cases so far."""

    done: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)


def run_all(bench: Bench, cases: Sequence[Case], budget_s: float, save: Save | None = None) -> dict[str, Any]:
    """Run the cases until the budget is spent; a case that fails does not stop the others.

    ``save`` gets the results after every case, so that a process that is stopped loses one case, not all.

    A group starts no case after its share of the time is over, added to what earlier groups left. Cases that were left
    out so are tried again, in order, in the time that is left at the end; those that are not are named with the reason.
    """
    started = time.monotonic()
    groups = [group for group in GROUPS if any(case.group == group for case in cases)]
    whole = sum(GROUPS[group] for group in groups)
    outcome, left = Outcome(), list(cases)

    def results() -> dict[str, Any]:
        return {
            "cases": list(outcome.done),
            "skipped": list(outcome.skipped),
            "failures": list(outcome.failures),
            "left_out": [{"name": case.name, "group": case.group, "reason": NO_TIME} for case in left],
            "elapsed_s": time.monotonic() - started,
            "budget_s": budget_s,
        }

    def attempt(chosen: Sequence[Case], until_s: float) -> None:
        for case in chosen:
            if time.monotonic() - started < until_s:
                left.remove(case)
                _run(bench, case, outcome, started)
                if save is not None:
                    save(results())

    until_s = 0.0
    for group in groups:
        until_s += budget_s * GROUPS[group] / whole
        attempt([case for case in cases if case.group == group], until_s)
    attempt(list(left), budget_s)
    return results()


def _run(bench: Bench, case: Case, outcome: Outcome, started: float) -> None:
    began = time.monotonic()
    sys.stderr.write(f"[{began - started:6.1f} s] {case.name}\n")
    try:
        with torch.no_grad():
            record = {"name": case.name, "group": case.group, **case.run()}
    except SkipCase as reason:
        outcome.skipped.append({"name": case.name, "reason": str(reason)})
        return
    except Exception as error:  # whatever a driver, a compiler or an allocator raises: record it, measure the rest
        outcome.failures.append({"name": case.name, "reason": f"{type(error).__name__}: {str(error)[:2000]}"})
        bench.release()
        return
    outcome.done.append({**record, "took_s": time.monotonic() - began})
    outcome.failures += [{"name": case.name, "reason": text} for text in missed_limits(record)]


def missed_limits(record: dict[str, Any]) -> list[str]:
    """What is wrong with a record's numbers."""
    found = ["the result is not finite"] if record.get("finite") is False else []
    exact = record.get("policy", "per-step") in EXACT
    names = ("error_against_eager", *(("error_against_upstream",) if exact else ()))
    for name in names:
        error, limit = record.get(name), record.get("limit")
        if error is not None and limit is not None and not error <= limit:
            found.append(f"{name.replace('_', ' ')} is {error:.2e}, the limit {limit:.0e}")
    return found
