"""What --provider may say of a bundle of PyTorch networks, and what this machine must have for it."""

from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from livemoments.errors import MissingExtraError, UsageError
from livemoments.pytorch.attention import chosen_kernel, find_kernel
from livemoments.pytorch.backend import TorchBackend
from livemoments.pytorch.opening import open_torch_backend
from livemoments.pytorch.options import TorchOptions

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("cpu", TorchOptions()),
        ("cpu+bf16+int8-linears", TorchOptions(dtype="bfloat16", linears="int8")),
        ("cpu+math+compile", TorchOptions(attention="math", is_compiled=True)),
        (
            "cuda:1+fp16+fp8-linears+cudnn+compile+graphs",
            TorchOptions("cuda:1", "float16", "fp8", "cudnn", is_compiled=True, has_graphs=True),
        ),
    ],
)
def test_words_are_read_and_written(provider: str, options: TorchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert TorchOptions.parse(provider) == options
    assert str(options) == provider
    assert str(TorchOptions.parse("cpu+compile+bf16")) == "cpu+bf16+compile"  # one spelling, whatever the order


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("tpu", "no provider 'tpu'"),
        ("cpu:1", "no provider 'cpu:1'"),
        ("cuda:x", "no provider 'cuda:x'"),
        ("cuda", "sees no device 'cuda'"),
        ("cpu+fast", "has no 'fast'"),
        ("cpu+", "has no ''"),
        ("cpu+fp16+bf16", "both float16 and bfloat16"),
        ("cpu+fp8-linears+int8-linears", "both fp8 and int8"),
        ("cpu+flash+math", "both flash and math"),
        ("cpu+graphs", "CUDA graphs need a CUDA device"),
        ("cpu+cudnn", "no attention 'cudnn' on cpu"),
        ("cpu+sage", "no attention 'sage' on cpu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(provider: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=words) as caught:
        TorchBackend(provider)
    assert caught.value.fix


def test_threads_must_be_positive() -> None:
    with pytest.raises(UsageError, match="0 threads"):
        TorchBackend("cpu", 0)


def test_without_sageattention_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sageattention", None)
    with pytest.raises(UsageError, match="needs SageAttention") as caught:
        find_kernel("sage", GPU)
    assert "pip install sageattention" in (caught.value.fix or "")


def test_sageattention_is_called_as_its_interface_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def sageattn(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tensor_layout: str, is_causal: bool
    ) -> torch.Tensor:
        assert (tensor_layout, is_causal) == ("HND", False)  # heads before tokens, as PyTorch has them
        return F.scaled_dot_product_attention(q, k, v)

    package = types.ModuleType("sageattention")
    package.sageattn = sageattn
    monkeypatch.setitem(sys.modules, "sageattention", package)
    q, k, v = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    assert torch.equal(find_kernel("sage", GPU)(q, k, v), F.scaled_dot_product_attention(q, k, v))
    assert chosen_kernel("sage", q, k, v) == "sage"


@pytest.mark.parametrize("kind", ["flash", "math"])
def test_a_forced_kernel_is_the_one_that_runs(kind: str) -> None:
    ran = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
            ran.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    q = torch.randn(1, 2, 8, 16)
    with Watch():
        find_kernel(kind, CPU)(q, q, q)
    assert ("_scaled_dot_product_flash_attention_for_cpu" in ran) == (kind == "flash")
    assert chosen_kernel(kind, q, q, q) == kind
    assert chosen_kernel("auto", q, q, q) == "flash"


def test_a_machine_without_pytorch_is_told_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "livemoments.pytorch.backend")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="'reference'"):
        open_torch_backend("cpu", None)
