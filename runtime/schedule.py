"""Which of a bundle's timesteps to sample at: the bundle's own plan, or other step counts from the same points.

The full schedule, and the table that an export builds from it, are in :mod:`livemoments.schedule`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livemoments.errors import UsageError
from livemoments.manifest import Schedule
from livemoments.schedule import FIRST_INDEX, LAST_INDEX, build_schedule, sigma_at, step_indices

__all__ = ["build_schedule", "plan_steps", "sigmas", "upstream_sigmas"]

_TRAIN_STEPS = 1000


def upstream_sigmas(steps: int, shift: float = 3.0, train_steps: int = _TRAIN_STEPS) -> np.ndarray:
    """The noise levels of upstream's ``steps``-step sampling, descending: (steps,) float64, without the final 0.

    Six steps give 0.2002, 0.1655, 0.1289, 0.0902, 0.0493, 0.0030.

    Raises:
        UsageError: fewer than one step, or more than the schedule has.
    """
    return np.array([sigma_at(index, shift=shift, train_steps=train_steps) for index in step_indices(steps)])


def plan_steps(schedule: Schedule, steps: int | None = None) -> tuple[int, ...]:
    """The points that ``steps``-step sampling uses, ascending indices into ``schedule.points``.

    The bundle's own plan where it has one; otherwise, for each of upstream's entries ``linspace(923, 999, steps)``
    in turn, the nearest point that is not used yet.

    Args:
        schedule: the manifest's.
        steps: how many; the bundle's default if not given.

    Raises:
        UsageError: not positive, more steps than the bundle has points, or other steps than the plans' with a bundle
            that has no indices.
    """
    count = schedule.default_steps if steps is None else steps
    if exact := schedule.plans.get(str(count)):
        return exact
    points = len(schedule.points)
    if not 1 <= count <= points:
        raise UsageError(
            f"{count} steps were asked for, and this bundle's schedule has {points} timesteps",
            fix=f"use 1 to {points} steps, or export with --steps {count}" if count > 0 else "use at least one step",
        )
    if not schedule.indices:
        raise UsageError(
            f"this bundle does not say which timesteps its points are, so {count} steps cannot be placed among them",
            fix=f"use {' or '.join(schedule.plans)} steps, or export again",
        )
    return _nearest_points(np.array(schedule.indices), np.linspace(FIRST_INDEX, LAST_INDEX, count))


def sigmas(schedule: Schedule, plan: Sequence[int]) -> np.ndarray:
    """The noise levels of a plan's points and the final 0: (len(plan) + 1,) float64, descending."""
    return np.array([*(schedule.points[point].sigma for point in plan), 0.0])


def _nearest_points(available: np.ndarray, wanted: np.ndarray) -> tuple[int, ...]:
    chosen: list[int] = []
    for number, index in enumerate(wanted):
        start = chosen[-1] + 1 if chosen else 0
        stop = len(available) - (len(wanted) - number - 1)  # leave a point for each step still to come
        chosen.append(start + int(np.abs(available[start:stop] - index).argmin()))
    return tuple(chosen)
