"""SD3's flow-matching schedule, as LiveMoments samples it: from t = 0.2 down to 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from livemoments.errors import UsageError
from livemoments.manifest import Schedule, SchedulePoint

FIRST_INDEX = 923
LAST_INDEX = 999
"""Upstream samples at ``linspace(923, 999, steps)`` of the 1000 training timesteps: index 923 is t = 0.2."""
NOISE_LEVEL = 0.2
DEFAULT_STEPS = 6


def step_indices(steps: int) -> tuple[int, ...]:
    """Indices into the training schedule of ``steps``-step sampling; six steps give 923, 938, 953, 968, 983, 999.

    Raises:
        UsageError: fewer than one step, or more than there are indices.
    """
    most = LAST_INDEX - FIRST_INDEX + 1
    if not 1 <= steps <= most:
        raise UsageError(f"{steps} sampling steps are not possible", fix=f"use 1 to {most} (the paper uses 6)")
    return tuple(int(index) for index in np.linspace(FIRST_INDEX, LAST_INDEX, steps))


def sigma_at(index: int, *, shift: float = 3.0, train_steps: int = 1000) -> float:
    """Noise level of one training timestep: ``s = (N - index) / N``, shifted to ``shift s / (1 + (shift - 1) s)``."""
    sigma = (train_steps - index) / train_steps
    return shift * sigma / (1 + (shift - 1) * sigma)


def build_schedule(
    step_counts: Sequence[int] = (DEFAULT_STEPS,),
    *,
    shift: float = 3.0,
    train_steps: int = 1000,
    default_steps: int = DEFAULT_STEPS,
) -> Schedule:
    """The points that a set of step counts needs, in descending sigma, and each count's plan over them.

    Raises:
        UsageError: an impossible step count.
    """
    counts = sorted({*step_counts, default_steps})
    indices = sorted({index for count in counts for index in step_indices(count)})
    sigmas = [sigma_at(index, shift=shift, train_steps=train_steps) for index in indices]
    place = {index: place for place, index in enumerate(indices)}
    return Schedule(
        points=tuple(SchedulePoint(timestep=sigma * train_steps, sigma=sigma) for sigma in sigmas),
        plans={str(count): tuple(place[index] for index in step_indices(count)) for count in counts},
        default_steps=default_steps,
        noise_level=NOISE_LEVEL,
        indices=tuple(indices),
    )
