"""The Core ML backend: packages chained tile by tile, and what runs them where."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from livemoments.coreml import backend as module
from livemoments.coreml.backend import CoreMlBackend, CoreMlEngine
from livemoments.coreml.names import feature_name, packages_of, parse_slice, slice_name
from livemoments.coreml.package import Package
from livemoments.coreml.program import Function, ValueType, Variable
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.manifest import Graph
from livemoments.types import Stage, TensorSpec

INPUTS = (
    TensorSpec("latent", "float32", ("batch", 2)),
    TensorSpec("step", "int64", ()),
    TensorSpec("motion_bias", "float32", (3, "batch", 2)),
)
OUTPUTS = (TensorSpec("velocity", "float32", ("batch", 2)), TensorSpec("stack.a", "float32", (2, "batch", 2)))


class Fake:
    """A program of numpy; keeps what it was fed."""

    def __init__(self, inputs: tuple[str, ...], compute: Any) -> None:
        self.inputs = inputs
        self._compute = compute
        self.fed: list[dict[str, np.ndarray]] = []

    def run(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.fed.append(values)
        return self._compute(**values)


def chain() -> list[Fake]:
    """Two chunks: the first leaves tokens, the second makes the outputs from them and its part of the motion."""
    first = Fake(
        ("latent", "step", "motion_bias_0_2"),
        lambda latent, step, motion_bias_0_2: {"image_2": latent * step + motion_bias_0_2.sum(0)},
    )
    second = Fake(
        ("image_2", "motion_bias_2_3"),
        lambda image_2, motion_bias_2_3: {
            "velocity": image_2 - motion_bias_2_3[0],
            "stack_a": np.stack([image_2, 2 * image_2]),
        },
    )
    return [first, second]


def feeds(tiles: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng()
    return {
        "latent": rng.standard_normal((tiles, 2)).astype(np.float32),
        "step": np.array(3, np.int64),
        "motion_bias": rng.standard_normal((3, tiles, 2)).astype(np.float32),
    }


@pytest.mark.parametrize("tiles", [1, 3])
def test_packages_pass_tensors_on_tile_by_tile(tiles: int) -> None:
    programs, inputs = chain(), feeds(tiles)
    engine = CoreMlEngine(Stage.RESTORATION, INPUTS, OUTPUTS, list(programs))
    got = engine.run(engine.cast(inputs))
    motion = inputs["motion_bias"]
    tokens = inputs["latent"] * 3 + motion[0] + motion[1]
    np.testing.assert_allclose(got["velocity"], tokens - motion[2], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["stack.a"], np.stack([tokens, 2 * tokens]), rtol=1e-6, atol=1e-6)
    assert len(programs[0].fed) == tiles
    fed = programs[0].fed[-1]
    assert {name: value.shape for name, value in fed.items()} == {
        "latent": (1, 2),
        "step": (1,),
        "motion_bias_0_2": (2, 1, 2),
    }
    assert fed["step"].dtype == np.int32


def test_what_no_package_makes_is_named() -> None:
    engine = CoreMlEngine(Stage.RESTORATION, INPUTS, OUTPUTS, list(chain()[1:]))
    with pytest.raises(EngineError, match="nothing makes 'image_2'"):
        engine.run(engine.cast(feeds(1)))
    engine = CoreMlEngine(Stage.RESTORATION, INPUTS, OUTPUTS, list(chain()[:1]))
    with pytest.raises(EngineError, match="no package makes 'velocity'"):
        engine.run(engine.cast(feeds(1)))


def test_a_closed_engine_is_closed() -> None:
    engine = CoreMlEngine(Stage.RESTORATION, INPUTS, OUTPUTS, list(chain()))
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.run(feeds(1))


def test_names_are_those_that_core_ml_allows() -> None:
    assert feature_name("reference_k.10") == "reference_k_10"
    assert feature_name(slice_name("motion_bias", 6, 12)) == "motion_bias_6_12"
    assert parse_slice("motion_bias_6_12") == ("motion_bias", 6, 12)
    assert parse_slice("reference_k_10") is None
    files = ("flow/a.mlpackage/Manifest.json", "flow/a.mlpackage/Data/model", "flow/b.mlpackage/Manifest.json")
    assert packages_of(Path("/x"), files) == [Path("/x/flow/a.mlpackage"), Path("/x/flow/b.mlpackage")]


def test_off_a_mac_there_is_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    assert CoreMlBackend().provider == CoreMlBackend("interpreter").provider == "interpreter"
    with pytest.raises(UsageError, match="no provider 'gpu' on this system"):
        CoreMlBackend("gpu")
    with pytest.raises(UsageError, match="no provider 'cuda'"):
        CoreMlBackend("cuda")


def test_a_graph_without_packages_is_refused(tmp_path: Path) -> None:
    graph = Graph(path="flow/any.onnx", size="64x64", weights=(), inputs=INPUTS, outputs=OUTPUTS)
    with pytest.raises(EngineError, match="stage 'flow' has no Core ML package"):
        CoreMlBackend("interpreter").open_files(tmp_path, Stage.FLOW, graph)


def test_a_missing_coremltools_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    graph = Graph(path="a.mlpackage/Manifest.json", size="64x64", weights=(), inputs=INPUTS, outputs=OUTPUTS)
    with pytest.raises(MissingExtraError, match="extra 'coreml'"):
        CoreMlBackend("gpu").open_files(tmp_path, Stage.FLOW, graph)


def test_on_a_mac_the_frameworks_model_is_fed_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for coremltools: the calls, not Core ML itself, which only a Mac has."""
    asked: list[tuple[str, str, str | None]] = []

    class Model:
        def __init__(self, path: str, compute_units: str, function_name: str | None = None) -> None:
            asked.append((path, compute_units, function_name))

        def predict(self, values: dict[str, np.ndarray]) -> dict[str, Any]:
            if values["latent"].sum() > 1000:
                raise RuntimeError("out of its depth")
            return {"velocity": values["latent"] + 1, "stack_a": values["motion_bias"][:2]}

    units = {"CPU_AND_GPU": "gpu!", "CPU_AND_NE": "ane!", "ALL": "all!", "CPU_ONLY": "cpu!"}
    stand_in = types.SimpleNamespace(models=types.SimpleNamespace(MLModel=Model), ComputeUnit=units)
    monkeypatch.setitem(sys.modules, "coremltools", stand_in)  # type: ignore[arg-type]
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    graph = Graph(path="a.mlpackage/Manifest.json", size="64x64", weights=(), inputs=INPUTS, outputs=OUTPUTS)
    features = tuple(Variable(name, ValueType("float32", ())) for name in ("latent", "step", "motion_bias"))
    functions = {"main": Function("main", "CoreML8", features, (), (), ())}
    opened = Package(tmp_path, functions, "main")
    monkeypatch.setattr("livemoments.coreml.package.Package.open", lambda path: opened)
    for provider, unit in (("cpu", "gpu!"), ("cpu-only", "cpu!"), ("ane", "ane!"), ("all", "all!")):
        engine = CoreMlBackend(provider).open_files(tmp_path, Stage.RESTORATION, graph)
        assert asked.pop() == (str(tmp_path / "a.mlpackage"), unit, None)
    inputs = feeds(2)
    got = engine.run(engine.cast(inputs))
    np.testing.assert_array_equal(got["velocity"], inputs["latent"] + 1)
    np.testing.assert_array_equal(got["stack.a"], inputs["motion_bias"][:2])
    for size in ("64x64", "96x64"):
        functions[f"size_{size}"] = Function(f"size_{size}", "CoreML8", features, (), (), ())
    CoreMlBackend("gpu").open_files(tmp_path, Stage.RESTORATION, graph)
    assert asked.pop() == (str(tmp_path / "a.mlpackage"), "gpu!", "size_64x64")
    with pytest.raises(EngineError, match="Core ML failed"):
        engine.run(
            engine.cast({**inputs, "latent": np.full((1, 2), 1e4, np.float32), "motion_bias": np.zeros((3, 1, 2))})
        )
