"""Images at another size, and sampled at other places."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.coreml.kernels.registry import Arguments, kernel


@kernel("upsample_nearest_neighbor")
def upsample_nearest_neighbor(arguments: Arguments) -> Tensor:
    """(..., H, W) larger by two factors: every pixel repeated."""
    x = arguments.tensor("x")
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        factor = arguments.number(name, 1.0)
        if factor != int(factor):
            raise arguments.refuse(f"a factor of {factor} is not interpreted")
        x = x.repeat_interleave(int(factor), dim=axis)
    return x


@kernel("upsample_bilinear")
def upsample_bilinear(arguments: Arguments) -> Tensor:
    """(..., H, W) larger by two factors, linear between pixels; the grid ends in the outer pixels' centres or edges."""
    x = arguments.tensor("x")
    factors = [arguments.number(name, 1.0) for name in ("scale_factor_height", "scale_factor_width")]
    size = [math.floor(length * factor) for length, factor in zip(x.shape[-2:], factors, strict=True)]
    images = x.reshape(-1, 1, *x.shape[-2:])
    larger = F.interpolate(images, size=size, mode="bilinear", align_corners=arguments.flag("align_corners", True))
    return larger.reshape(*x.shape[:-2], *size)


@kernel("resample")
def resample(arguments: Arguments) -> Tensor:
    """x (B, C, H, W) at coordinates (B, H', W', 2), x before y."""
    x, coordinates = arguments.tensor("x"), arguments.tensor("coordinates")
    sampling = arguments.choice("sampling_mode", ("bilinear", "nearest"))
    padding = arguments.choice("padding_mode", ("constant", "border", "reflection"))
    kind = arguments.choice(
        "coordinates_mode", ("normalized_minus_one_to_one", "normalized_zero_to_one", "unnormalized")
    )
    corners = arguments.flag("align_corners")
    if arguments.number("padding_value") != 0 and padding == "constant":
        raise arguments.refuse("a padding value other than 0 is not interpreted")
    coordinates = coordinates.to(x.dtype)
    if kind == "normalized_zero_to_one":
        coordinates = 2 * coordinates - 1
    elif kind == "unnormalized":
        extents = torch.tensor([x.shape[3] - 1, x.shape[2] - 1], dtype=x.dtype)
        coordinates = 2 * coordinates / extents - 1
        if not corners:
            raise arguments.refuse("unnormalized coordinates between edges are not interpreted")
    mode = {"constant": "zeros", "border": "border", "reflection": "reflection"}[padding]
    return F.grid_sample(x, coordinates, mode=sampling, padding_mode=mode, align_corners=corners)
