"""A device's answers against the interpreter's, with a stand-in for the framework that only a Mac has."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from cli_support import run as cli
from coreml_programs import ct, mb, save

from livemoments.cli import verify_bundle
from livemoments.coreml import comparison
from livemoments.coreml.comparison import compare_with_interpreter
from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.package import Package
from livemoments.errors import UsageError
from livemoments.manifest import Graph
from livemoments.types import TensorSpec

SHAPE = (1, 4, 8, 8)
SPECS = (
    (TensorSpec("latent", "float32", ("batch", *SHAPE[1:])),),
    (TensorSpec("image", "float32", ("batch", *SHAPE[1:])),),
)


class Model:
    """Stands for coremltools' MLModel on a Mac: answers what the interpreter does, times ``factor``."""

    factor = 1.0
    opened: list[str]

    def __init__(self, path: str, compute_units: Any) -> None:
        self.compute_unit = compute_units
        self._interpreter = Interpreter(Package.open(path))
        self.opened.append(compute_units.name)

    def predict(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value * np.float32(self.factor) for name, value in self._interpreter.run(values).items()}

    def get_compiled_model_path(self) -> str:
        return "compiled"


class MLGPUComputeDevice:
    """Named as the framework's."""


class Plan:
    """Stands for MLComputePlan: of three operators one is on the GPU and one nowhere."""

    @classmethod
    def load_from_path(cls, path: str, compute_units: Any) -> Any:
        assert (path, compute_units) == ("compiled", ct.ComputeUnit.CPU_AND_GPU)
        block = types.SimpleNamespace(operations=["const", "mul"])
        program = types.SimpleNamespace(functions={"main": types.SimpleNamespace(block=block)})
        usage = types.SimpleNamespace(preferred_compute_device=MLGPUComputeDevice())
        return types.SimpleNamespace(
            model_structure=types.SimpleNamespace(program=program),
            get_compute_device_usage_for_mlprogram_operation=lambda op: usage if op == "mul" else None,
        )


@pytest.fixture(name="bundle")
def fixture_bundle(tmp_path: Path) -> Any:
    """A stage of one package, as the comparison reads bundles."""
    latent = np.zeros(SHAPE, np.float32)
    save(lambda latent: mb.mul(x=latent, y=np.float32(2), name="image"), {"latent": latent}, tmp_path / "a.mlpackage")
    graph = Graph(path="a.mlpackage/Manifest.json", size="8x8", weights=(), inputs=SPECS[0], outputs=SPECS[1])
    stages = {"vae_decoder": types.SimpleNamespace(precision="fp16", graphs=(graph,))}
    manifest = types.SimpleNamespace(target="coreml", stages=stages, recipe=None, files={})
    return types.SimpleNamespace(path=tmp_path, manifest=manifest)


@pytest.fixture(name="mac")
def fixture_mac(monkeypatch: pytest.MonkeyPatch) -> type[Model]:
    monkeypatch.setattr(comparison.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(ct.models, "MLModel", Model)
    monkeypatch.setattr("coremltools.models.compute_plan.MLComputePlan", Plan)
    monkeypatch.setattr(Model, "factor", 1.0)
    monkeypatch.setattr(Model, "opened", [], raising=False)
    return Model


def test_a_device_that_answers_what_the_package_says_passes(bundle: Any, mac: type[Model]) -> None:
    report = compare_with_interpreter(bundle, "gpu")
    (graph,) = report.graphs
    assert (graph.stage, graph.size, graph.output, graph.rel_l2) == ("vae_decoder", "8x8", "image", 0.0)
    assert graph.placement == {"gpu": 1, "unknown": 1}
    assert graph.passed
    assert report.passed
    assert mac.opened == ["CPU_AND_GPU"]
    assert report.versions["coremltools"] == ct.__version__


def test_a_device_that_does_not_is_told_and_ends_with_1(
    bundle: Any, mac: type[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mac, "factor", 1.02)
    monkeypatch.setattr(verify_bundle, "open_checked", lambda path, progress: bundle)
    ended = cli("verify", bundle.path, "--compute-unit", "gpu")
    assert ended.exit_code == 1
    assert "2.0e-02 from the interpreter ('image', limit 1e-02)" in ended.stdout
    assert "operators on 1 gpu, 1 unknown" in ended.stdout
    sent = json.loads(ended.stdout.splitlines()[-1])
    assert sent["graphs"][0]["rel_l2"] == pytest.approx(0.02, rel=1e-3)
    assert "CPU_AND_GPU does not answer what the packages say: vae_decoder" in ended.stderr


def test_no_answer_is_an_answer(bundle: Any, mac: type[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mac, "factor", np.nan)
    report = compare_with_interpreter(bundle, "gpu")
    assert not report.passed
    assert "NaN" in (report.graphs[0].error or "")


def test_the_call_signatures_are_coremltools_own() -> None:
    """What is called on a Mac only: the names and the parameters exist in the installed coremltools."""
    import inspect

    from coremltools.models.compute_plan import MLComputePlan

    assert list(inspect.signature(MLComputePlan.load_from_path).parameters) == ["path", "compute_units"]
    usage = inspect.signature(MLComputePlan.get_compute_device_usage_for_mlprogram_operation)
    assert list(usage.parameters) == ["self", "operation"]
    assert list(inspect.signature(ct.models.MLModel.get_compiled_model_path).parameters) == ["self"]
    assert {"compute_units", "function_name"} <= set(inspect.signature(ct.models.MLModel.__init__).parameters)
    assert {unit.name for unit in ct.ComputeUnit} >= {"CPU_AND_GPU", "CPU_AND_NE", "ALL", "CPU_ONLY"}


def test_off_a_mac_and_without_packages_it_is_one_clear_error(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison.platform, "system", lambda: "Linux")
    with pytest.raises(UsageError, match="a compute unit is part of a Mac, and this system is Linux"):
        compare_with_interpreter(bundle, "gpu")
    bundle.manifest.target = "onnx"
    with pytest.raises(UsageError, match="made for onnx, a compute unit is Core ML's"):
        compare_with_interpreter(bundle, "gpu")


def test_it_excludes_the_options_that_it_decides(tmp_path: Path) -> None:
    ended = cli("verify", tmp_path, "--compute-unit", "gpu", "--level", "files")
    assert ended.exit_code == 2
    assert "leave --level and --provider out" in ended.stderr
