"""The sampling schedule: upstream's numbers, and other step counts from a bundle's points."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest

from livemoments.errors import UsageError
from livemoments.runtime.schedule import build_schedule, plan_steps, sigmas, upstream_sigmas

TRAIN_STEPS = 1000


def index_of(sigma: float, shift: float = 3.0) -> float:
    """The schedule entry of a noise level, by inverting the shift."""
    return TRAIN_STEPS * (1 - sigma / (shift - (shift - 1) * sigma))


def test_six_steps_are_upstreams_published_numbers() -> None:
    found = upstream_sigmas(6)
    assert found.round(4).tolist() == [0.2002, 0.1655, 0.1289, 0.0902, 0.0493, 0.0030]
    assert np.allclose([index_of(s) for s in found], [923, 938, 953, 968, 983, 999])


def test_sigmas_equal_the_shifted_table_entry_by_entry() -> None:
    table = np.linspace(1, TRAIN_STEPS, TRAIN_STEPS)[::-1] / TRAIN_STEPS
    for shift in (1.0, 3.0, 5.5):
        shifted = shift * table / (1 + (shift - 1) * table)
        indices = np.linspace(923, 999, 9).astype(int)
        assert np.allclose(upstream_sigmas(9, shift=shift), shifted[indices], rtol=1e-12)


@pytest.mark.parametrize("steps", [0, -1, 78])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=str(steps)):
        upstream_sigmas(steps)


def test_schedule_holds_each_timestep_once_and_every_plan_exactly() -> None:
    counts = (1, 2, 4, 6, 10)
    schedule = build_schedule(counts)
    levels = [point.sigma for point in schedule.points]
    assert levels == sorted(set(levels), reverse=True)
    assert set(schedule.plans) == {str(count) for count in counts}
    for count in counts:
        plan = plan_steps(schedule, count)
        assert np.allclose(sigmas(schedule, plan)[:-1], upstream_sigmas(count), rtol=1e-12)
    used = {point for plan in schedule.plans.values() for point in plan}
    assert used == set(range(len(levels)))


def test_timesteps_are_a_thousand_sigma_and_the_default_is_six_steps() -> None:
    schedule = build_schedule([4])
    assert all(point.timestep == pytest.approx(1000 * point.sigma) for point in schedule.points)
    assert schedule.default_steps == 6
    assert plan_steps(schedule) == plan_steps(schedule, 6) == schedule.plans["6"]


def test_sigmas_end_in_zero() -> None:
    schedule = build_schedule([6])
    levels = sigmas(schedule, plan_steps(schedule))
    assert levels.shape == (7,)
    assert levels[-1] == 0
    assert (np.diff(levels) < 0).all()


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_other_step_counts_use_the_nearest_points_once_each(shift: float) -> None:
    schedule = build_schedule([6, 20], shift=shift)
    available = np.array([index_of(point.sigma, shift) for point in schedule.points])
    for steps in range(1, len(schedule.points) + 1):
        if str(steps) in schedule.plans:
            continue
        plan = plan_steps(schedule, steps)
        assert len(plan) == steps
        assert all(a < b for a, b in itertools.pairwise(plan))
        assert plan[0] == 0
        wanted = np.linspace(923, 999, steps)
        if steps <= 8:  # sparse enough that no two steps compete for one point
            assert plan == tuple(int(np.abs(available - index).argmin()) for index in wanted)


def test_indices_are_the_points_places_in_the_training_schedule() -> None:
    schedule = build_schedule([5, 9], shift=4.0)
    assert np.allclose(schedule.indices, [index_of(point.sigma, 4.0) for point in schedule.points])
    older = msgspec.structs.replace(schedule, indices=())
    assert plan_steps(older, 9) == plan_steps(schedule, 9)
    with pytest.raises(UsageError, match="7 steps") as caught:
        plan_steps(older, 7)
    assert caught.value.fix == "use 5 or 6 or 9 steps, or export again"


def test_more_steps_than_points_names_the_export_option() -> None:
    with pytest.raises(UsageError, match="export with --steps 12"):
        plan_steps(build_schedule([6]), 12)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=str(steps)):
        plan_steps(build_schedule([6]), steps)
