"""Blur kernels of the Real-ESRGAN degradation: Gaussian, generalised Gaussian, plateau and sinc.

All are (side, side) float64 of unit sum, centred; the formulas are those of Wang et al. 2021, section 3.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from livemoments.errors import UsageError

BlurKind = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KernelKind = BlurKind | Literal["sinc"]
Array = npt.NDArray[np.float64]

_BESSEL_POINTS = 256  # the trapezoid rule on a period is exact to rounding for |x| well below their number


def blur_kernel(kind: BlurKind, side_px: int, sigma_px: tuple[float, float], angle: float, beta: float) -> Array:
    """A kernel that is a function of the elliptic radius ``r^2 = x^T S^-1 x``.

    ``exp(-r^2 / 2)`` for Gaussians, ``exp(-r^(2 beta) / 2)`` for generalised ones, ``1 / (1 + r^(2 beta))`` for
    plateaus.

    Args:
        kind: which; ``iso`` kinds have equal sigmas.
        side_px: odd.
        sigma_px: along the kernel's own two axes.
        angle: by which these are turned, in radians, from x towards y.
        beta: shape.

    Raises:
        UsageError: the side is even, or a sigma is not positive.
    """
    _check_side(side_px)
    if min(sigma_px) <= 0:
        raise UsageError(f"a blur of sigma {min(sigma_px)} pixels", fix="use a positive one")
    y, x = _grid(side_px)
    along = (np.cos(angle) * x + np.sin(angle) * y) / sigma_px[0]
    across = (np.cos(angle) * y - np.sin(angle) * x) / sigma_px[1]
    squared = along**2 + across**2
    if kind.startswith("plateau"):
        kernel = 1 / (1 + squared**beta)
    else:
        kernel = np.exp(-0.5 * (squared**beta if kind.startswith("generalized") else squared))
    return np.asarray(kernel / kernel.sum())


def sinc_kernel(side_px: int, cutoff: float) -> Array:
    """The ideal low-pass with a circular pass band, cut to a square.

    Args:
        side_px: odd.
        cutoff: angular frequency in radians a pixel, above 0, at most pi.

    Raises:
        UsageError: the side is even or the cutoff outside its range.
    """
    _check_side(side_px)
    if not 0 < cutoff <= np.pi:
        raise UsageError(f"a cutoff of {cutoff} radians a pixel", fix="use one above 0 and at most pi")
    y, x = _grid(side_px)
    radius = np.hypot(x, y)
    middle = side_px // 2
    radius[middle, middle] = 1.0
    kernel = cutoff * bessel_j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[middle, middle] = cutoff**2 / (4 * np.pi)
    return np.asarray(kernel / kernel.sum())


def bessel_j1(x: Array) -> Array:
    """Bessel's function of the first kind of order 1, by its integral; for ``|x|`` up to 200."""
    angles = 2 * np.pi * np.arange(_BESSEL_POINTS) / _BESSEL_POINTS
    return np.asarray(np.cos(angles - np.asarray(x)[..., None] * np.sin(angles)).mean(axis=-1))


def _grid(side_px: int) -> tuple[Array, Array]:
    axis = np.arange(side_px, dtype=np.float64) - side_px // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def _check_side(side_px: int) -> None:
    if side_px < 1 or side_px % 2 == 0:
        raise UsageError(f"a kernel of {side_px} pixels has no middle", fix="use an odd number")
