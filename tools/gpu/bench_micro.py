"""Linear layers at the network's shapes in 8 bits: fp8 (``torch._scaled_mm``) and int8 (``torch._int_mm``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from bench_measure import relative_error, time_runs
from bench_networks import Setup
from torch import nn

from livemoments.pytorch.linears import KINDS


def linear_shapes(setup: Setup) -> dict[str, tuple[int, int, int]]:
    """Rows, inputs and outputs of the image stream's linear layers."""
    rows, dim = setup.batch * setup.image_tokens, setup.sizes.dim
    return {"attention": (rows, dim, dim), "ff.0": (rows, dim, 4 * dim), "ff.2": (rows, 4 * dim, dim)}


def micro_cases(setup: Setup, *, repeats: int) -> Iterator[dict[str, Any]]:
    """One record per shape and kind; ``skipped`` holds the reason where a kind does not run on this device.

    ``latency`` is the product of ready 8-bit operands (with int8's rescaling), ``latency_with_quantization`` also
    quantizes the activations, as eager kernels; ``relative_error`` is against float32 arithmetic on the same values.
    """
    for name, (rows, width_in, width_out) in linear_shapes(setup).items():
        generator = torch.Generator(setup.device).manual_seed(setup.seed)
        x = torch.randn(rows, width_in, device=setup.device, generator=generator).to(setup.dtype)
        weight = torch.randn(width_out, width_in, device=setup.device, generator=generator).mul_(width_in**-0.5)
        weight = weight.to(setup.dtype)
        exact = F.linear(x.float(), weight.float())
        operations = 2 * rows * width_in * width_out
        plain = time_runs(lambda x=x, w=weight: F.linear(x, w), setup.device, repeats=repeats, warmup=3)
        shape = {"layer": name, "rows": rows, "inputs": width_in, "outputs": width_out}
        yield {
            **shape,
            "kind": str(setup.dtype).removeprefix("torch."),
            "latency": asdict(plain),
            "tflop_per_s": operations / plain.median_ms / 1e9,
            "relative_error": relative_error(F.linear(x, weight), exact),
        }
        plain_layer = nn.Linear(width_in, width_out, bias=False, device="meta")
        plain_layer.weight = nn.Parameter(weight, requires_grad=False)
        for kind in KINDS:
            try:
                layer = KINDS[kind](plain_layer)
                ready = layer.quantize(x)
                error = relative_error(layer.multiply(*ready, setup.dtype), exact)
            except (RuntimeError, NotImplementedError, AttributeError, ValueError) as problem:
                yield {**shape, "kind": kind, "skipped": str(problem).strip().splitlines()[0]}
                continue
            product = time_runs(
                lambda y=layer, r=ready: y.multiply(*r, setup.dtype), setup.device, repeats=repeats, warmup=3
            )
            whole = time_runs(lambda y=layer, x=x: y(x), setup.device, repeats=repeats, warmup=3)
            yield {
                **shape,
                "kind": kind,
                "latency": asdict(product),
                "latency_with_quantization": asdict(whole),
                "tflop_per_s": operations / product.median_ms / 1e9,
                "speedup": plain.median_ms / product.median_ms,
                "speedup_with_quantization": plain.median_ms / whole.median_ms,
                "relative_error": error,
            }
