"""Linear layers whose products are of 8 bits: fp8 (E4M3, ``torch._scaled_mm``) and int8 (``torch._int_mm``).

Weights are rounded when a layer is replaced, activations at every run, with a scale taken from the values themselves:
no calibration is needed, and none can be out of date. On a CPU the fp8 product is one of floats, to check what a GPU
computes. This module needs PyTorch alone.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livemoments.export.passes.fold_conditioning import replace_module

LinearKind = Literal["fp8", "int8"]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
INT8_MAX = 127.0
_SMALLEST = 1e-12
"""Keeps the scale of an all-zero tensor from being zero."""
_MULTIPLE = 16
"""cuBLAS takes 8-bit operands whose inner sides are multiples of this."""
_FEWEST_ROWS = 17
"""``torch._int_mm`` refuses fewer rows on a GPU."""


class EightBitLinear(nn.Module, abc.ABC):
    """A linear layer (B, ..., K) to (B, ..., N) whose weight is stored in 8 bits.

    Args:
        linear: what it replaces; K and N must be multiples of 16.

    Attributes:
        weight: (N, K), rounded.
        weight_scale: float32: ``weight * weight_scale`` is what was rounded.
        bias: as it was.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values, scale = self.quantize_weight(linear.weight.detach())
        self.register_buffer("weight", values)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @staticmethod
    @abc.abstractmethod
    def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K) to 8 bits and the float32 scale."""

    @staticmethod
    @abc.abstractmethod
    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations (M, K) to 8 bits and the float32 scale."""

    @abc.abstractmethod
    def multiply(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Rounded activations (M, K) and their scale to (M, N) in ``dtype``, bias included."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in the type of ``x``."""
        rows = x.reshape(-1, x.shape[-1])
        return self.multiply(*self.quantize(rows), x.dtype).reshape(*x.shape[:-1], -1)


class Fp8Linear(EightBitLinear):
    """E4M3 with one scale for the activations and one for the weight, which cuBLAS applies.

    Partial sums stay in the tensor cores' own precision (``use_fast_accum``), as in the forward pass of NVIDIA's
    Transformer Engine.
    """

    @staticmethod
    def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
        """One scale for all of it."""
        return Fp8Linear.quantize(weight)

    @staticmethod
    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        """One scale for all of it; the largest magnitude becomes 448."""
        scale = x.abs().amax().float().clamp_min(_SMALLEST) / FP8_MAX
        return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale

    def multiply(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """See :meth:`EightBitLinear.multiply`."""
        if not x.is_cuda:  # PyTorch's own kernel there makes 30 million products a second
            found = (x.float() @ self.weight.float().t()) * (scale * self.weight_scale)
            return (found if self.bias is None else found + self.bias.float()).to(dtype)
        return self.multiply_fused(x, scale, dtype)

    def multiply_fused(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """The same by ``torch._scaled_mm``, as a GPU computes it."""
        fused = None if dtype == torch.float32 else self.bias  # cuBLAS adds a bias of 16 bits only
        product: Tensor = torch._scaled_mm(
            x,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale,
            bias=fused,
            out_dtype=dtype,
            use_fast_accum=True,
        )
        return product if self.bias is None or fused is not None else product + self.bias


class Int8Linear(EightBitLinear):
    """Symmetric integers: one scale per output channel of the weight, one per row (token) of the activations."""

    @staticmethod
    def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
        """One scale per row, (N, 1)."""
        return Int8Linear.quantize(weight)

    @staticmethod
    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        """One scale per row, (M, 1); the largest magnitude becomes 127."""
        scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(_SMALLEST) / INT8_MAX
        return (x.float() / scale).round().to(torch.int8), scale

    def multiply(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """See :meth:`EightBitLinear.multiply`."""
        missing = _FEWEST_ROWS - len(x)
        sums = torch._int_mm(F.pad(x, (0, 0, 0, missing)) if missing > 0 else x, self.weight.t())[: len(x)]
        product = sums.float() * scale * self.weight_scale.t()
        return (product if self.bias is None else product + self.bias.float()).to(dtype)


KINDS: dict[LinearKind, type[EightBitLinear]] = {"fp8": Fp8Linear, "int8": Int8Linear}


def emulate(linear: EightBitLinear, x: Tensor) -> Tensor:
    """What ``linear`` computes, by a float64 product of the rounded values: (M, K) to (M, N) float64.

    For tests, and for devices that have no 8-bit product.
    """
    values, scale = linear.quantize(x)
    weight = linear.weight.double() * linear.weight_scale.double()
    product = (values.double() * scale.double()) @ weight.t()
    return product if linear.bias is None else product + linear.bias.double()


def replace_linears(root: nn.Module, kind: LinearKind, *, is_wanted: Callable[[str], bool] | None = None) -> list[str]:
    """Put 8-bit layers in the place of linear layers; the names of those that were replaced.

    Layers whose sides are no multiples of 16 stay: no GPU multiplies them in 8 bits.

    Args:
        root: changed in place, on its device.
        kind: ``fp8`` or ``int8``.
        is_wanted: of a layer's dotted name; all by default.
    """
    replaced = []
    for name, module in list(root.named_modules()):
        if not isinstance(module, nn.Linear) or (is_wanted is not None and not is_wanted(name)):
            continue
        if module.in_features % _MULTIPLE or module.out_features % _MULTIPLE:
            continue
        replace_module(root, name, KINDS[kind](module))
        replaced.append(name)
    return replaced
