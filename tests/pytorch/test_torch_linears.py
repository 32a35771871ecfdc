"""8-bit linears: what the products compute, held against float64 products of the same rounded values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from livemoments.distances import relative_l2
from livemoments.pytorch.linears import KINDS, EightBitLinear, Fp8Linear, Int8Linear, emulate, replace_linears

ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Relative L2 of a product against float64: the rounding of its result."""
EIGHT_BITS = {"fp8": 0.05, "int8": 0.015}
"""Relative L2 of an 8-bit linear against the float one, on normal activations and weights."""


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return relative_l2(found.double().numpy(), wanted.double().numpy())


def make_linear(inputs: int = 96, outputs: int = 48, *, bias: bool = True, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    linear.weight.normal_(std=inputs**-0.5)
    if bias:
        linear.bias.normal_()
    return linear.to(dtype)


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_products_are_those_of_the_rounded_values(kind: str, bias: bool, dtype: torch.dtype) -> None:
    linear = make_linear(bias=bias, dtype=dtype)
    x = torch.randn(3, 21, 96).to(dtype)
    replaced = KINDS[kind](linear)
    found = replaced(x)
    assert (found.dtype, found.shape) == (dtype, (3, 21, 48))
    assert error(found.reshape(-1, 48), emulate(replaced, x.reshape(-1, 96))) < ROUNDING[dtype]
    assert (
        error(found, F.linear(x.float(), linear.weight.float(), linear.bias.float() if bias else None))
        < EIGHT_BITS[kind]
    )


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("bias", [True, False])
def test_the_call_of_the_gpu_kernel_computes_the_same(bias: bool, dtype: torch.dtype) -> None:
    """PyTorch has the kernel for CPUs too, if a slow one: the same arguments, the same checks of them."""
    layer = Fp8Linear(make_linear(bias=bias, dtype=dtype))
    x = torch.randn(24, 96).to(dtype)
    rounded = layer.quantize(x)
    found = layer.multiply_fused(*rounded, dtype)
    assert found.dtype == dtype
    assert error(found, layer.multiply(*rounded, dtype)) < ROUNDING[dtype]


def test_a_few_rows_are_padded_for_the_gpu_and_the_padding_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply, rows = torch._int_mm, []

    def like_a_gpu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        rows.append(len(a))
        if len(a) <= 16:
            raise RuntimeError("self.size(0) needs to be greater than 16")
        return multiply(a, b)

    monkeypatch.setattr(torch, "_int_mm", like_a_gpu)
    layer = Int8Linear(make_linear(dtype=torch.float32))
    for count in (1, 16, 17, 40):
        x = torch.randn(count, 96)
        assert error(layer(x), emulate(layer, x)) < ROUNDING[torch.float32]
    assert rows == [17, 17, 17, 40]


def test_each_token_has_its_own_integer_scale() -> None:
    layer = Int8Linear(make_linear(bias=False, dtype=torch.float32))
    x = torch.randn(32, 96)
    loud = torch.cat([x, 1000 * x])
    assert torch.equal(layer(loud)[:32], layer(x))
    quiet = Fp8Linear(make_linear(bias=False, dtype=torch.float32))
    assert not torch.equal(quiet(loud)[:32], quiet(x))  # one scale for all: the loud tokens coarsen the others


@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_in_gives_the_bias(kind: str) -> None:
    linear = make_linear(dtype=torch.float32)
    found = KINDS[kind](linear)(torch.zeros(20, 96))
    torch.testing.assert_close(found, linear.bias.expand(20, -1))


@pytest.mark.parametrize("kind", list(KINDS))
def test_only_what_a_gpu_multiplies_and_what_is_wanted_is_replaced(kind: str) -> None:
    root = nn.ModuleDict(
        {
            "blocks": nn.ModuleList([nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 20)), nn.Linear(20, 32)]),
            "out": nn.Linear(32, 32),
        }
    )
    names = replace_linears(root, kind, is_wanted=lambda name: name != "out")
    assert names == ["blocks.0.0"]
    kinds = [type(module) for module in root.modules() if isinstance(module, nn.Linear | EightBitLinear)]
    assert kinds == [KINDS[kind], nn.Linear, nn.Linear, nn.Linear]
    assert root["blocks"][0][0].weight.element_size() == 1
    assert not list(root["blocks"][0][0].parameters())
