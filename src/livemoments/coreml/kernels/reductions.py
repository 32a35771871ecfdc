"""Sums, means and extremes over axes, and the normalisations that are made of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.coreml.kernels.registry import Arguments, kernel

Reduction = Callable[[Tensor, list[int], bool], Tensor]

_REDUCTIONS: dict[str, Reduction] = {
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _register(name: str, function: Reduction) -> None:
    def run(arguments: Arguments) -> Tensor:
        x = arguments.tensor("x")
        return function(x, arguments.ints("axes", list(range(x.dim()))), arguments.flag("keep_dims", False))

    kernel(name)(run)


for _name, _reduction in _REDUCTIONS.items():
    _register(_name, _reduction)


@kernel("softmax")
def softmax(arguments: Arguments) -> Tensor:
    """exp(x) over its sum along an axis."""
    return F.softmax(arguments.tensor("x"), arguments.integer("axis", -1))


@kernel("layer_norm")
def layer_norm(arguments: Arguments) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over ``axes``, times gamma, plus beta."""
    x = arguments.tensor("x")
    axes = sorted(axis % x.dim() for axis in arguments.ints("axes", list(range(x.dim()))))
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    normed = centred * torch.rsqrt(variance + arguments.number("epsilon", 1e-5))
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(x.dim())]
    return _scaled(normed, arguments, shape)


@kernel("instance_norm")
def instance_norm(arguments: Arguments) -> Tensor:
    """(B, C, ...): each channel of each image has mean 0 and variance 1, times gamma, plus beta."""
    x = arguments.tensor("x")
    axes = list(range(2, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + arguments.number("epsilon", 1e-5))
    return _scaled(normed, arguments, _channels(x))


@kernel("batch_norm")
def batch_norm(arguments: Arguments) -> Tensor:
    """(B, C, ...): with stored means and variances of the channels, times gamma, plus beta."""
    x = arguments.tensor("x")
    mean, variance = (arguments.tensor(name).reshape(_channels(x)) for name in ("mean", "variance"))
    normed = (x - mean) * torch.rsqrt(variance + arguments.number("epsilon", 1e-5))
    return _scaled(normed, arguments, _channels(x))


@kernel("l2_norm")
def l2_norm(arguments: Arguments) -> Tensor:
    """x over the length of its last three axes."""
    x = arguments.tensor("x")
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + arguments.number("epsilon", 1e-6))


def _channels(x: Tensor) -> list[int]:
    return [1, x.shape[1], *[1] * (x.dim() - 2)]


def _scaled(normed: Tensor, arguments: Arguments, shape: list[int]) -> Tensor:
    gamma, beta = arguments.optional("gamma"), arguments.optional("beta")
    if gamma is not None:
        normed = normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)
