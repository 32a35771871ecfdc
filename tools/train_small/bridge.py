"""The bridge between the two latents (the paper's supplement, equations 8 to 11)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from livemoments.schedule import NOISE_LEVEL


class BridgePoint(NamedTuple):
    """``z``, the point at time t, and ``velocity``, dz/dt there: (B, C, h, w)."""

    z: Tensor
    velocity: Tensor


def bridge_point(z_hq: Tensor, z_lq: Tensor, noise: Tensor, t: Tensor) -> BridgePoint:
    """``z_t = alpha z_hq + beta z_lq + sigma noise`` and its derivative.

    With T = 0.2: alpha = (1 - t)(T - t) / T, beta = (1 - t) t / T, sigma = t (equations 10 and 11). At t = 0 it is
    z_hq, at t = T ``0.8 z_lq + 0.2 noise``, where sampling starts.

    Args:
        z_hq, z_lq, noise: (B, C, h, w).
        t: (B,), in [0, T].
    """
    end = NOISE_LEVEL
    t = t.view(-1, *[1] * (z_hq.ndim - 1))
    alpha, beta = (1 - t) * (end - t) / end, (1 - t) * t / end
    alpha_slope, beta_slope = (2 * t - 1 - end) / end, (1 - 2 * t) / end
    z = alpha * z_hq + beta * z_lq + t * noise
    return BridgePoint(z, alpha_slope * z_hq + beta_slope * z_lq + noise)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """(count,) times, uniform over [0, 0.2], one in each of as many equal parts: less variance than free draws."""
    parts = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return NOISE_LEVEL * parts[torch.randperm(count, generator=generator)]
