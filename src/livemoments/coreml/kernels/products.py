"""Matrix products, convolutions, pooling and attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.coreml.kernels.registry import Arguments, kernel


@kernel("linear")
def linear(arguments: Arguments) -> Tensor:
    """x (..., in), weight (out, in), bias (out) to (..., out)."""
    return F.linear(arguments.tensor("x"), arguments.tensor("weight"), arguments.optional("bias"))


@kernel("matmul")
def matmul(arguments: Arguments) -> Tensor:
    """Products of the last two axes, either of which may be transposed."""
    x, y = arguments.tensor("x"), arguments.tensor("y")
    if arguments.flag("transpose_x", False):
        x = x.transpose(-1, -2)
    if arguments.flag("transpose_y", False):
        y = y.transpose(-1, -2)
    return torch.matmul(x, y)


@kernel("einsum")
def einsum(arguments: Arguments) -> Tensor:
    """Einstein's summation."""
    return torch.einsum(arguments.text("equation"), *arguments.tensors("values"))


@kernel("scaled_dot_product_attention")
def attention(arguments: Arguments) -> Tensor:
    """softmax(q k^T / sqrt(head size) + mask) v; a mask of truth values says which keys take part."""
    query, key, value = (arguments.tensor(name) for name in ("query", "key", "value"))
    mask = arguments.optional("attn_mask")
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@kernel("conv")
def conv(arguments: Arguments) -> Tensor:
    """Cross-correlation in one to three dimensions: x (B, C, ...), weight (out, C / groups, ...)."""
    x, weight = arguments.tensor("x"), arguments.tensor("weight")
    dims = x.dim() - 2
    strides, dilations = arguments.ints("strides", [1] * dims), arguments.ints("dilations", [1] * dims)
    windows = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    before_after = _padding(arguments, list(x.shape[2:]), windows, strides, default="valid")
    if all(before == after for before, after in before_after):
        padding = [before for before, _ in before_after]
    else:
        padding = [0] * dims
        x = F.pad(x, [width for pair in reversed(before_after) for width in pair])
    run = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    groups = arguments.integer("groups", 1)
    return run(x, weight, arguments.optional("bias"), strides, padding, dilations, groups)


@kernel("avg_pool")
def avg_pool(arguments: Arguments) -> Tensor:
    """Mean of every window; padding counts as zeros, or not at all."""
    x, sizes, strides, before_after = _pooling(arguments)
    flat = [width for pair in reversed(before_after) for width in pair]
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    mean: Tensor = run(F.pad(x, flat), sizes, strides)
    if arguments.flag("exclude_padding_from_average", False):
        mean = mean / run(F.pad(torch.ones_like(x), flat), sizes, strides)
    return mean


@kernel("max_pool")
def max_pool(arguments: Arguments) -> Tensor:
    """Largest of every window; padding never is."""
    x, sizes, strides, before_after = _pooling(arguments)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    flat = [width for pair in reversed(before_after) for width in pair]
    largest: Tensor = run(F.pad(x, flat, value=-math.inf), sizes, strides)
    return largest


def _pooling(arguments: Arguments) -> tuple[Tensor, list[int], list[int], list[tuple[int, int]]]:
    x, sizes = arguments.tensor("x"), arguments.ints("kernel_sizes")
    strides = arguments.ints("strides", [1] * len(sizes))
    if arguments.flag("ceil_mode", False):
        raise arguments.refuse("rounding up the output's size is not interpreted")
    return x, sizes, strides, _padding(arguments, list(x.shape[2:]), sizes, strides)


def _padding(
    arguments: Arguments, lengths: list[int], windows: list[int], strides: list[int], default: str | None = None
) -> list[tuple[int, int]]:
    """Per axis, how many elements are padded before and after."""
    kind = arguments.choice("pad_type", ("valid", "custom", "same", "same_lower"), default)
    widths = arguments.ints("pad", [0] * (2 * len(lengths)))
    if kind == "valid":
        return [(0, 0)] * len(lengths)
    if kind == "custom":
        return [(widths[2 * axis], widths[2 * axis + 1]) for axis in range(len(lengths))]
    found = []
    for length, window, stride in zip(lengths, windows, strides, strict=True):
        whole = max(0, (math.ceil(length / stride) - 1) * stride + window - length)
        less = whole // 2
        found.append((less, whole - less) if kind == "same" else (whole - less, less))
    return found
