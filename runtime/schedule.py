"""The sampler's noise levels: upstream's schedule, the table that a bundle stores, and other step counts from it.

Upstream samples at indices ``linspace(923, 999, steps)``, truncated, of the 1000-entry SD3 schedule
(UPSTREAM.md, "One tile", 5): entry ``i`` has ``s = (1000 - i) / 1000`` and ``sigma = 3 s / (1 + 2 s)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livemoments.errors import UsageError
from livemoments.manifest import Schedule, SchedulePoint

FIRST_INDEX = 923
LAST_INDEX = 999
TRAIN_STEPS = 1000
SHIFT = 3.0


def upstream_indices(steps: int, *, first: int = FIRST_INDEX, last: int = LAST_INDEX) -> np.ndarray:
    """The schedule's entries that ``steps``-step sampling visits: (steps,) int64, ascending.

    Raises:
        UsageError: fewer than one step, or more than there are entries.
    """
    most = last - first + 1
    if not 1 <= steps <= most:
        raise UsageError(f"{steps} steps cannot be sampled; the schedule allows 1 to {most}")
    return np.linspace(first, last, steps).astype(np.int64)


def shifted_sigma(index: np.ndarray | int, *, shift: float = SHIFT, train_steps: int = TRAIN_STEPS) -> np.ndarray:
    """Noise level of schedule entries, in [0, 1]: ``shift s / (1 + (shift - 1) s)`` with ``s = 1 - index / train_steps``."""
    s = (train_steps - np.asarray(index, dtype=np.float64)) / train_steps
    return shift * s / (1 + (shift - 1) * s)


def upstream_sigmas(
    steps: int,
    shift: float = SHIFT,
    first: int = FIRST_INDEX,
    last: int = LAST_INDEX,
    train_steps: int = TRAIN_STEPS,
) -> np.ndarray:
    """The noise levels of ``steps``-step sampling, descending: (steps,) float64, without the final 0.

    Six steps give 0.2002, 0.1655, 0.1289, 0.0902, 0.0493, 0.0030.

    Raises:
        UsageError: see :func:`upstream_indices`.
    """
    return shifted_sigma(upstream_indices(steps, first=first, last=last), shift=shift, train_steps=train_steps)


def build_schedule(
    step_counts: Sequence[int],
    *,
    shift: float = SHIFT,
    train_steps: int = TRAIN_STEPS,
    default_steps: int = 6,
    noise_level: float = 0.2,
    first: int = FIRST_INDEX,
    last: int = LAST_INDEX,
) -> Schedule:
    """The table that a bundle stores for these step counts: every timestep any of them visits, once.

    Args:
        step_counts: step counts with an exact plan; ``default_steps`` is always among them.
        shift: the scheduler's shift (3 for SD3-medium).
        train_steps: entries of the full schedule.
        default_steps: the count that sampling uses when none is asked for.
        noise_level: share of noise in the initial latent.
        first: the entry of the greatest noise level.
        last: the entry of the least.

    Raises:
        UsageError: a step count is out of range.
    """
    counts = sorted({*step_counts, default_steps})
    visited = {count: upstream_indices(count, first=first, last=last).tolist() for count in counts}
    indices = sorted({index for plan in visited.values() for index in plan})
    sigmas = shifted_sigma(np.array(indices), shift=shift, train_steps=train_steps).tolist()
    place = {index: point for point, index in enumerate(indices)}
    return Schedule(
        points=tuple(SchedulePoint(timestep=1000.0 * sigma, sigma=sigma) for sigma in sigmas),
        plans={str(count): tuple(place[index] for index in plan) for count, plan in visited.items()},
        default_steps=default_steps,
        noise_level=noise_level,
    )


def plan_steps(schedule: Schedule, steps: int | None = None) -> tuple[int, ...]:
    """The points that ``steps``-step sampling uses, ascending indices into ``schedule.points``.

    The bundle's own plan where it has one; otherwise, for each of upstream's entries in turn, the nearest point
    that is not used yet.

    Raises:
        UsageError: not positive, or more steps than the bundle has points.
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
    return _nearest_points(_point_indices(schedule), np.linspace(FIRST_INDEX, LAST_INDEX, count))


def sigmas(schedule: Schedule, plan: Sequence[int]) -> np.ndarray:
    """The noise levels of a plan's points and the final 0: (len(plan) + 1,) float64, descending."""
    return np.array([*(schedule.points[point].sigma for point in plan), 0.0])


def _point_indices(schedule: Schedule) -> np.ndarray:
    # The manifest stores no shift, but every plan begins at FIRST_INDEX, so the greatest sigma gives it away.
    s = (TRAIN_STEPS - FIRST_INDEX) / TRAIN_STEPS
    greatest = schedule.points[0].sigma
    shift = greatest * (1 - s) / (s * (1 - greatest))
    levels = np.array([point.sigma for point in schedule.points])
    return TRAIN_STEPS * (1 - levels / (shift - (shift - 1) * levels))


def _nearest_points(available: np.ndarray, wanted: np.ndarray) -> tuple[int, ...]:
    chosen: list[int] = []
    for number, index in enumerate(wanted):
        start = chosen[-1] + 1 if chosen else 0
        stop = len(available) - (len(wanted) - number - 1)  # leave a point for each step still to come
        chosen.append(start + int(np.abs(available[start:stop] - index).argmin()))
    return tuple(chosen)
