"""Linear layers at the network's shapes in 8 bits: fp8 (``torch._scaled_mm``) and int8 (``torch._int_mm``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from bench_measure import relative_error, time_runs
from bench_networks import Setup
from torch import Tensor

_FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_INT8_MAX = 127.0
_TINY = 1e-12

Linear = Callable[[Tensor], Tensor]


def linear_shapes(setup: Setup) -> dict[str, tuple[int, int, int]]:
    """Rows, inputs and outputs of the image stream's linear layers."""
    rows, dim = setup.batch * setup.image_tokens, setup.sizes.dim
    return {"attention": (rows, dim, dim), "ff.0": (rows, dim, 4 * dim), "ff.2": (rows, 4 * dim, dim)}


def _fp8_parts(weight: Tensor) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """Per-tensor scales: how activations are quantized, and the product of quantized ones."""

    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax().float().clamp_min(_TINY) / _FP8_MAX
        return (x / scale).clamp(-_FP8_MAX, _FP8_MAX).to(_FP8), scale

    quantized, weight_scale = quantize(weight.float())

    def multiply(x: Tensor, scale: Tensor) -> Tensor:
        return torch._scaled_mm(x, quantized.t(), scale_a=scale, scale_b=weight_scale, out_dtype=weight.dtype)

    return quantize, multiply


def _int8_parts(weight: Tensor) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], Callable[..., Tensor]]:
    """One scale per token and per output channel."""

    def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(_TINY) / _INT8_MAX
        return (x / scale).round().to(torch.int8), scale

    quantized, weight_scale = quantize(weight.float())

    def multiply(x: Tensor, scale: Tensor) -> Tensor:
        product = torch._int_mm(x, quantized.t())
        return (product * scale * weight_scale.t()).to(weight.dtype)

    return quantize, multiply


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
        for kind, parts in (("fp8", _fp8_parts), ("int8", _int8_parts)):
            try:
                quantize, multiply = parts(weight)
                ready = quantize(x)
                error = relative_error(multiply(*ready), exact)
            except (RuntimeError, NotImplementedError, AttributeError, ValueError) as problem:
                yield {**shape, "kind": kind, "skipped": str(problem).strip().splitlines()[0]}
                continue
            product = time_runs(lambda m=multiply, r=ready: m(*r), setup.device, repeats=repeats, warmup=3)
            whole = time_runs(lambda m=multiply, q=quantize, x=x: m(*q(x)), setup.device, repeats=repeats, warmup=3)
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
