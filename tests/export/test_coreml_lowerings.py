"""coremltools' faults that the conversion works around: each shows itself where the remedy is taken away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

import torch
import torch.nn.functional as F
from coreml_programs import ct  # noqa: F401  (quietly imported there)
from torch import Tensor, nn

from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.package import Package
from livemoments.distances import relative_l2
from livemoments.errors import EngineError
from livemoments.export.coreml import convert as conversion
from livemoments.export.coreml import lowerings
from livemoments.export.coreml.convert import convert
from livemoments.export.coreml.gate import run_package
from livemoments.export.coreml.modules import Part
from livemoments.export.normalisation import GroupNorm
from livemoments.types import TensorSpec

SAME = 2e-6
"""Relative L2 between a float32 module and its package: summation order."""


@pytest.fixture(name="rng")
def fixture_rng() -> np.random.Generator:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(name="without_remedy")
def fixture_without_remedy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """coremltools as it comes: its own lowerings, and all its passes."""
    from coremltools.converters.mil.frontend.torch import ops, torch_op_registry

    lowerings.install()
    registry = torch_op_registry._TORCH_OPS_REGISTRY.name_to_func_mapping
    ours = dict(registry)
    names = {"clamp": "clamp", "div": "div", "truediv": "div", "gelu": "gelu", "layer_norm": "layer_norm", "pad": "pad"}
    for name, own in names.items():
        assert registry[name] is not getattr(ops, own)
        registry[name] = getattr(ops, own)
    monkeypatch.setattr(lowerings, "install", lambda: None)
    monkeypatch.setattr(conversion, "LEFT_OUT", frozenset())
    yield
    registry.update(ours)


class Calls(nn.Module):
    """A function as a module, with parameters that it may use."""

    def __init__(self, function: Callable[..., Tensor], *parameters: np.ndarray, half: bool = False) -> None:
        super().__init__()
        self.function = function
        tensors = [torch.from_numpy(values) for values in parameters]
        self.weights = nn.ParameterList(nn.Parameter(t.half() if half else t, requires_grad=False) for t in tensors)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors, *self.weights)


def part_of(module: nn.Module, *inputs: np.ndarray, out: str = "float32") -> tuple[Part, dict[str, np.ndarray]]:
    arrays = {f"input.{index}": array for index, array in enumerate(inputs)}
    specs = tuple(TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items())
    with torch.inference_mode():
        found = module(*(torch.from_numpy(array) for array in inputs))
    return Part(module, specs, (TensorSpec("output", out, tuple(found.shape)),)), arrays


def package_answer(folder: Path, module: nn.Module, *inputs: np.ndarray, out: str = "float32") -> np.ndarray:
    """What the package of a module makes of the inputs, with its own roundings."""
    part, arrays = part_of(module, *inputs, out=out)
    convert(part, folder / "part.mlpackage")
    return run_package(Package.open(folder / "part.mlpackage"), part, arrays, "declared")["output"]


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def kinds(folder: Path) -> list[tuple[str, str]]:
    """Every operator and its result's type."""
    function = Interpreter(Package.open(folder / "part.mlpackage")).function
    return [(operation.kind, operation.outputs[0].type.dtype) for operation in function.operations]


# GELU


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    return 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))


def test_tanh_gelu_stays_what_it_is(tmp_path: Path, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 200)
    module = Calls(lambda x: F.gelu(x, approximate="tanh"))
    assert relative_l2(package_answer(tmp_path, module, x), tanh_gelu(x)) < SAME


@pytest.mark.usefixtures("without_remedy")
def test_without_the_remedy_tanh_gelu_is_silently_another(tmp_path: Path, rng: np.random.Generator) -> None:
    x = normal(rng, 3, 200)
    module = Calls(lambda x: F.gelu(x, approximate="tanh"))
    assert relative_l2(package_answer(tmp_path, module, x), tanh_gelu(x)) > 1e-5


# A layer norm whose scale and shift are computed


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], scale, shift, 1e-6)


def test_a_modulated_norm_converts(tmp_path: Path, rng: np.random.Generator) -> None:
    x, scale, shift = normal(rng, 1, 5, 16), normal(rng, 16), normal(rng, 16)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + shift
    assert relative_l2(package_answer(tmp_path, Calls(modulated), x, scale, shift), want) < SAME
    stored = Calls(modulated, scale, shift)  # and one whose scale and shift are weights
    (tmp_path / "stored").mkdir()
    assert relative_l2(package_answer(tmp_path / "stored", stored, x), want) < SAME


@pytest.mark.usefixtures("without_remedy")
def test_without_the_remedy_a_modulated_norm_does_not_convert(tmp_path: Path, rng: np.random.Generator) -> None:
    x, scale, shift = normal(rng, 1, 5, 16), normal(rng, 16), normal(rng, 16)
    with pytest.raises(EngineError, match="does not convert"):
        package_answer(tmp_path, Calls(modulated), x, scale, shift)


# Clamped integers as an index


def look_up(x: Tensor, places: Tensor) -> Tensor:
    cells = torch.floor(places).to(torch.int64).clamp(min=0)
    return x.gather(1, torch.minimum(cells, torch.tensor([[9]])))


def test_clamped_integers_stay_integers(tmp_path: Path, rng: np.random.Generator) -> None:
    x, places = normal(rng, 4, 10), rng.uniform(-5, 15, (4, 6)).astype(np.float32)
    want = np.take_along_axis(x, np.floor(places).astype(int).clip(0, 9), 1)
    np.testing.assert_array_equal(package_answer(tmp_path, Calls(look_up), x, places), want)


@pytest.mark.usefixtures("without_remedy")
def test_without_the_remedy_clamped_integers_are_no_index(tmp_path: Path, rng: np.random.Generator) -> None:
    x, places = normal(rng, 4, 10), rng.uniform(-5, 15, (4, 6)).astype(np.float32)
    with pytest.raises(EngineError, match="does not convert"):
        package_answer(tmp_path, Calls(look_up), x, places)


# Half precision that meets numbers


def padded_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.pad(x / 2.0, (0, 1, 0, 1)), weight, bias)


def half_product(rng: np.random.Generator) -> tuple[nn.Module, np.ndarray]:
    return Calls(padded_product, normal(rng, 4, 3, 3, 3), normal(rng, 4), half=True), normal(
        rng, 1, 3, 6, 6, dtype="float16"
    )


def test_numbers_do_not_widen_half_precision(tmp_path: Path, rng: np.random.Generator) -> None:
    module, x = half_product(rng)
    got = package_answer(tmp_path, module, x, out="float16")
    with torch.inference_mode():
        want = module.float()(torch.from_numpy(x).float()).numpy()
    assert relative_l2(got, want) < 1e-3
    assert {dtype for kind, dtype in kinds(tmp_path) if kind != "const"} == {"float16"}


@pytest.mark.usefixtures("without_remedy")
def test_without_the_remedy_numbers_widen_half_precision(tmp_path: Path, rng: np.random.Generator) -> None:
    module, x = half_product(rng)
    with pytest.raises(EngineError, match="does not convert"):
        package_answer(tmp_path, module, x, out="float16")


# A multiplication and an addition that must not become a batch norm


def test_scale_and_shift_of_channels_stay_exact(tmp_path: Path, rng: np.random.Generator) -> None:
    x, scale, shift = normal(rng, 1, 8, 5, 5), normal(rng, 8, 1, 1), normal(rng, 8, 1, 1)
    module = Calls(lambda x, scale, shift: x * scale + shift, scale, shift)
    assert relative_l2(package_answer(tmp_path, module, x), x.astype(float) * scale + shift) < 2e-7
    assert "batch_norm" not in dict(kinds(tmp_path))


@pytest.mark.usefixtures("without_remedy")
def test_without_the_remedy_they_get_an_epsilon(tmp_path: Path, rng: np.random.Generator) -> None:
    x, scale, shift = normal(rng, 1, 8, 5, 5), normal(rng, 8, 1, 1), normal(rng, 8, 1, 1)
    module = Calls(lambda x, scale, shift: x * scale + shift, scale, shift)
    assert relative_l2(package_answer(tmp_path, module, x), x.astype(float) * scale + shift) > 1e-6


# Group normalisation of large activations


def grouped(rng: np.random.Generator, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Half-precision activations, and their normalisation in float64."""
    x = (normal(rng, 1, 8, 16, 16) * std + std / 3).astype(np.float16)
    rows = x.astype(np.float64).reshape(4, -1)
    want = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6)
    return x, want.reshape(x.shape)


def test_group_norm_survives_large_activations_in_half_precision(tmp_path: Path, rng: np.random.Generator) -> None:
    x, want = grouped(rng, 2000.0)
    module = GroupNorm(4, 8, 1e-6)
    module.weight.data.fill_(1)
    module.bias.data.zero_()
    got = package_answer(tmp_path, module.half().requires_grad_(False), x, out="float16")
    assert relative_l2(got, want) < 1e-3
    statistics = [dtype for kind, dtype in kinds(tmp_path) if kind in ("reduce_mean", "rsqrt", "sub")]
    assert statistics
    assert set(statistics) == {"float32"}


def test_group_norm_with_half_precision_statistics_is_dead(tmp_path: Path, rng: np.random.Generator) -> None:
    """The reason for our own: squares beyond 65504 are infinite, and what comes out is all zeros, without a NaN."""

    def plain(x: Tensor) -> Tensor:
        rows = x.reshape(1, 4, -1)
        centred = rows - rows.mean(-1, keepdim=True)
        return (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True))).reshape(x.shape)

    x, _ = grouped(rng, 2000.0)
    assert not package_answer(tmp_path, Calls(plain), x, out="float16").any()
