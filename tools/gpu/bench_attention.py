"""Attention at the restoration network's shape: every kernel that this machine has, and which one PyTorch chooses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from bench_measure import relative_error, time_runs
from bench_networks import Setup
from torch import Tensor

from livemoments.errors import UsageError
from livemoments.pytorch.attention import ATTENTIONS, chosen_kernel, find_kernel

_LEFT_OUT = ("math",)
"""Holds all weights at once and is never the fastest."""


def draw_heads(setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, heads, Q, head size), keys and values (B, heads, S, head size) of one guided block."""
    sizes = setup.sizes
    queries = setup.image_tokens + sizes.prompt_tokens
    keys = queries + setup.reference_tokens
    generator = torch.Generator(setup.device).manual_seed(setup.seed)
    query, key, value = (
        torch.randn(
            setup.batch,
            sizes.num_attention_heads,
            tokens,
            sizes.attention_head_dim,
            device=setup.device,
            generator=generator,
        ).to(setup.dtype)
        for tokens in (queries, keys, keys)
    )
    return query, key, value


def attention_cases(setup: Setup, *, repeats: int) -> Iterator[dict[str, Any]]:
    """One record a kernel; ``skipped`` holds the reason where it does not run. ``relative_error`` is against float64
    on a few queries.
    """
    query, key, value = draw_heads(setup)
    few = slice(0, 64)
    weights = torch.softmax(
        query[:, :, few].double() @ key.double().transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1
    )
    exact = weights @ value.double()
    operations = 4 * query.numel() * key.shape[2]
    for kind in ATTENTIONS:
        if kind in _LEFT_OUT:
            continue
        try:
            kernel = find_kernel(kind, setup.device)
            error = relative_error(kernel(query, key, value)[:, :, few], exact)
        except (UsageError, RuntimeError) as problem:  # a kernel that does not fit raises the latter
            yield {"kernel": kind, "skipped": str(problem).strip().splitlines()[0]}
            continue
        latency = time_runs(lambda kernel=kernel: kernel(query, key, value), setup.device, repeats=repeats, warmup=2)
        yield {
            "kernel": kind,
            "chosen": chosen_kernel(kind, query, key, value),
            "queries": query.shape[2],
            "keys": key.shape[2],
            "latency": asdict(latency),
            "tflop_per_s": operations / latency.median_ms / 1e9,
            "relative_error": error,
        }
