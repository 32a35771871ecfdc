"""A device's answers against the interpreter's, with a stand-in for the framework that only a Mac has."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from cli_support import run as cli
from coreml_programs import ct, mb, save

from livemoments.bundle import MANIFEST_NAME, Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.cli import verify_bundle
from livemoments.coreml import comparison
from livemoments.coreml.comparison import compare_with_interpreter
from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.package import Package
from livemoments.errors import UsageError
from livemoments.manifest import FileEntry, Graph
from livemoments.runtime.options import RestoreOptions
from livemoments.types import TensorSpec
from livemoments.validate.options import ValidateOptions
from livemoments.validate.report_data import Check
from livemoments.validate.run import validate_bundle

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
    with pytest.raises(UsageError, match="Core ML's devices are a Mac's, and this system is Linux"):
        compare_with_interpreter(bundle, "gpu")
    bundle.manifest.target = "onnx"
    with pytest.raises(UsageError, match="made for onnx, and only Core ML packages run both"):
        compare_with_interpreter(bundle, "gpu")


def test_it_excludes_the_options_that_it_decides(tmp_path: Path) -> None:
    ended = cli("verify", tmp_path, "--compute-unit", "gpu", "--level", "files")
    assert ended.exit_code == 2
    assert "leave --level and --provider out" in ended.stderr


def device_check(bundle: Any, provider: str = "cpu", **options: Any) -> Check:
    """The one check of a whole validation with --compare-interpreter, of a bundle with that one stage."""
    manifest = Bundle.open(trained_bundle(), verify_hashes=False).manifest
    stages = {
        name: msgspec.structs.replace(manifest.stages[name], precision=entry.precision, graphs=entry.graphs)
        for name, entry in bundle.manifest.stages.items()
    }
    files = {graph.path: FileEntry("0" * 64, 1) for entry in stages.values() for graph in entry.graphs}
    opened = Bundle(bundle.path, msgspec.structs.replace(manifest, target="coreml", files=files, stages=stages))
    (bundle.path / MANIFEST_NAME).write_bytes(msgspec.json.encode(opened.manifest))
    options |= {"check_itself": False, "compare_interpreter": True, "restore": RestoreOptions(provider=provider)}
    (check,) = validate_bundle(opened, options=ValidateOptions(**options)).checks
    return check


def test_validate_makes_a_check_of_every_graph(
    bundle: Any, mac: type[Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = device_check(bundle)
    assert (check.name, check.value, check.status) == ("device.vae_decoder.8x8.rel_l2", 0.0, "pass")
    assert "CPU_AND_GPU, output 'image'" in check.detail
    monkeypatch.setattr(mac, "factor", 1.02)
    check = device_check(bundle)
    assert (check.value, check.status) == (pytest.approx(0.02, rel=1e-3), "fail")
    wide = tmp_path / "wide.toml"
    wide.write_text(
        "[fp16]\nphoto_psnr_db = 1.0\nstage_rel_l2 = { vae_decoder = 0.1 }\n"
        "[fp32]\nphoto_psnr_db = 1.0\nstage_rel_l2 = {}\n"
    )
    assert device_check(bundle, limits=wide).status == "pass"
    monkeypatch.setattr(mac, "factor", np.nan)
    check = device_check(bundle)
    assert (check.value, check.status) == (None, "fail")
    assert "has no answer" in check.detail


def test_validate_takes_the_compute_unit_that_the_provider_names(
    bundle: Any, mac: type[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "get_compiled_model_path", lambda self: 1 / 0)  # no plan: an answer all the same
    assert "CPU_AND_NE has no answer" in device_check(bundle, provider="ane").detail
    assert mac.opened == ["CPU_AND_NE"]
    with pytest.raises(UsageError, match="the interpreter compared with itself says nothing"):
        device_check(bundle, provider="interpreter")


def test_validate_off_a_mac_is_one_clear_error_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = cli("validate", trained_bundle(), "--compare-interpreter", "-o", tmp_path / "report")
    assert (ended.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "made for onnx, and only Core ML packages" in ended.stderr
    monkeypatch.setattr(comparison.platform, "system", lambda: "Linux")
    manifest = msgspec.structs.replace(Bundle.open(trained_bundle(), verify_hashes=False).manifest, target="coreml")
    with pytest.raises(UsageError, match="Core ML's devices are a Mac's, and this system is Linux"):
        validate_bundle(Bundle(tmp_path, manifest), options=ValidateOptions(compare_interpreter=True))
