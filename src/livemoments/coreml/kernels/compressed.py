"""Constants that are stored small and computed when a program is loaded, and quantized activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from livemoments.coreml.kernels.registry import TORCH_DTYPES, Arguments, kernel

CONSTEXPR = "constexpr_"
"""What the names of operators begin with whose results are constants."""


@kernel("constexpr_blockwise_shift_scale")
def shift_scale(arguments: Arguments) -> Tensor:
    """scale * (data - offset), one scale and offset a block."""
    return _shift_scale(arguments.tensor("data"), arguments.tensor("scale"), arguments.optional("offset"), arguments)


@kernel("constexpr_lut_to_dense")
def lut_to_dense(arguments: Arguments) -> Tensor:
    """Entries of tables, one table a block; an entry may be a vector that lies along an axis."""
    axis = arguments.integer("vector_axis") if arguments.has("vector_axis") else None
    return _look_up(arguments.tensor("indices"), arguments.tensor("lut"), axis, arguments)


@kernel("constexpr_sparse_to_dense")
def sparse_to_dense(arguments: Arguments) -> Tensor:
    """Stored elements where the mask is 1, zeros elsewhere."""
    return _spread(arguments.tensor("nonzero_data"), arguments.tensor("mask"), arguments)


@kernel("constexpr_lut_to_sparse")
def lut_to_sparse(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Tables' entries for the stored elements alone: the mask, and the elements."""
    mask = arguments.tensor("indices_mask")
    indices = _spread(arguments.tensor("indices_nonzero_data"), mask, arguments)
    axis = arguments.integer("vector_axis") if arguments.has("vector_axis") else None
    lut = arguments.tensor("lut")
    dense = _look_up(indices, lut, axis, arguments)
    wide = mask if axis is None else mask.repeat_interleave(lut.shape[-1], dim=axis)
    return wide, dense[wide != 0]


@kernel("constexpr_sparse_blockwise_shift_scale")
def sparse_shift_scale(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """scale * (data - offset) for the stored elements alone: the mask, and the elements."""
    mask = arguments.tensor("data_mask")
    data = _spread(arguments.tensor("nonzero_data"), mask, arguments)
    dense = _shift_scale(data, arguments.tensor("scale"), arguments.optional("offset"), arguments)
    return mask, dense[mask != 0]


@kernel("quantize")
def quantize(arguments: Arguments) -> Tensor:
    """round(x / scale) + zero point, ties to even, within the type's limits."""
    dtype = TORCH_DTYPES[arguments.choice("output_dtype", ("int8", "uint8"))]
    x, scale, zero = _scales(arguments)
    limits = torch.iinfo(dtype)
    return (torch.round(x / scale) + zero).clamp(limits.min, limits.max).to(dtype)


@kernel("dequantize")
def dequantize(arguments: Arguments) -> Tensor:
    """scale * (x - zero point)."""
    x, scale, zero = _scales(arguments)
    return (x.to(scale.dtype) - zero) * scale


def _scales(arguments: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """The input, and scale and zero point in a shape that fits it."""
    x, scale = arguments.tensor("input"), arguments.tensor("scale")
    stored = arguments.optional("zero_point")
    zero = torch.zeros_like(scale) if stored is None else stored.to(scale.dtype)
    if scale.dim() == 0 and zero.dim() == 0:
        arguments.ignore("axis")
        return x, scale, zero
    axis = arguments.integer("axis") % x.dim()
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    return x, scale.reshape(shape) if scale.dim() else scale, zero.reshape(shape) if zero.dim() else zero


def _shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None, arguments: Arguments) -> Tensor:
    wide = data.to(scale.dtype)
    if offset is not None:
        wide = wide - _over_blocks(offset.to(scale.dtype), data, arguments)
    return wide * _over_blocks(scale, data, arguments)


def _over_blocks(values: Tensor, data: Tensor, arguments: Arguments) -> Tensor:
    """One value a block, repeated over the block's elements."""
    if values.dim() != data.dim():
        raise arguments.refuse(f"blocks of rank {values.dim()} in data of rank {data.dim()}")
    for axis, (blocks, length) in enumerate(zip(values.shape, data.shape, strict=True)):
        if length % blocks:
            raise arguments.refuse(f"axis {axis} of {length} is not {blocks} equal blocks")
        if 1 < blocks < length:
            values = values.repeat_interleave(length // blocks, dim=axis)
    return values


def _look_up(indices: Tensor, lut: Tensor, axis: int | None, arguments: Arguments) -> Tensor:
    """indices (K axes) and lut (K axes of blocks, entries, vector) to the entries."""
    if lut.dim() != indices.dim() + 2:
        raise arguments.refuse(f"tables of rank {lut.dim()} for indices of rank {indices.dim()}")
    entries, vector = lut.shape[-2:]
    number = torch.arange(math.prod(lut.shape[:-2])).reshape(lut.shape[:-2])
    table = _over_blocks(number, indices, arguments).expand(indices.shape)
    found = lut.reshape(-1, vector)[table * entries + indices.long()]  # (*indices, vector)
    if axis is None:
        if vector != 1:
            raise arguments.refuse("tables of vectors need an axis")
        return found.squeeze(-1)
    axis %= indices.dim()
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _spread(stored: Tensor, mask: Tensor, arguments: Arguments) -> Tensor:
    places = mask != 0
    if int(places.sum()) != stored.numel():
        raise arguments.refuse(f"{stored.numel()} elements for {int(places.sum())} places")
    dense = torch.zeros(mask.shape, dtype=stored.dtype)
    dense[places] = stored
    return dense
