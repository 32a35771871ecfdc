"""The learning rate over a run."""

from __future__ import annotations

_WARM_UP_STEPS = 150
_COOL_DOWN_SHARE = 0.3


def rate_at(step: int, steps: int) -> float:
    """Share of the highest rate: up within 150 steps, flat, and down to nothing over the last 30 %.

    Flat, so that a run can be made longer or shorter while it goes on.
    """
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    left = (steps - step) / max(1, round(steps * _COOL_DOWN_SHARE))
    return warm * min(1.0, left)
