"""Which kernel computes the transformers' attention: PyTorch's choice, a forced one of its own, or SageAttention's.

PyTorch chooses among kernels whose speed differs by half and more, and takes the slowest without a word where no other
fits. So a benchmark forces one, and records which one runs. This module needs PyTorch alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from livemoments.errors import UsageError

AttentionKind = Literal["auto", "flash", "cudnn", "efficient", "math", "sage"]
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys, values (B, heads, S, head size) to (B, heads, Q, head size), scale 1 / sqrt(head size)."""

ATTENTIONS: tuple[AttentionKind, ...] = get_args(AttentionKind)
_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_OF_CPU = ("auto", "flash", "math")


def find_kernel(kind: AttentionKind, device: torch.device) -> Kernel:
    """The kernel, ready to be called; a forced one that does not fit its inputs raises RuntimeError then.

    Raises:
        UsageError: the device has no such kernel, or its package is not installed.
    """
    if device.type != "cuda" and kind not in _OF_CPU:
        raise UsageError(f"there is no attention '{kind}' on {device.type}", fix=f"use {', '.join(_OF_CPU)}")
    if kind == "sage":
        return _sage()
    if kind == "auto":
        return F.scaled_dot_product_attention
    backend = _BACKENDS[kind]

    def forced(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value)

    return forced


def _sage() -> Kernel:
    try:
        found = importlib.import_module("sageattention").sageattn
    except ImportError as error:
        raise UsageError(
            f"8-bit attention needs SageAttention, which cannot be imported ({error})",
            fix="pip install sageattention (it compiles for the GPU), or use attention cudnn or flash",
        ) from None

    def sage(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed: Tensor = found(query, key, value, tensor_layout="HND", is_causal=False)
        return mixed

    return sage


def chosen_kernel(kind: AttentionKind, query: Tensor, key: Tensor, value: Tensor) -> str:
    """The name of the kernel that computes attention of these tensors: ``flash``, ``cudnn``, ``efficient``, ``math``,
    ``sage``; PyTorch's own choice for ``auto``.
    """
    if kind != "auto":
        return kind
    chosen = SDPBackend(torch._fused_sdp_choice(query, key, value))
    return next((name for name, backend in _BACKENDS.items() if backend == chosen), chosen.name.lower())
