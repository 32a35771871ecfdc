"""The Core AI backend: Apple's runtime on a package of a small module, and what is said where it cannot run."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from livemoments.coreai import backend as module
from livemoments.coreai.backend import CoreAiBackend, LoadedPackage
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.export.coreml.modules import Part
from livemoments.manifest import Graph
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Stage, TensorSpec


class Scaled(nn.Module):
    """latent (1, 2), step (1,) to latent * step and its rows' sum."""

    def forward(self, latent: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return latent * step.to(latent.dtype), latent.sum(dim=1)


GRAPH = Graph(
    path="restoration/64x64.aimodel/metadata.json",
    size="64x64",
    weights=(),
    inputs=(TensorSpec("latent", "float32", ("batch", 2)), TensorSpec("step", "int64", ())),
    outputs=(TensorSpec("velocity", "float32", ("batch", 2)), TensorSpec("sum.0", "float32", ("batch",))),
)


@pytest.fixture(name="folder", scope="module")
def fixture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("coreai_torch", reason="the extra 'coreai' is not installed ('make coreai')")
    from livemoments.export.coreai.convert import convert

    folder = tmp_path_factory.mktemp("bundle")
    inputs = (TensorSpec("latent", "float32", (1, 2)), TensorSpec("step", "int32", (1,)))
    outputs = (TensorSpec("velocity", "float32", (1, 2)), TensorSpec("sum.0", "float32", (1,)))
    convert(Part(Scaled(), inputs, outputs), folder / "restoration/64x64.aimodel")
    return folder


def feeds(tiles: int) -> dict[str, np.ndarray]:
    latent = np.random.default_rng().standard_normal((tiles, 2)).astype(np.float32)
    return {"latent": latent, "step": np.array(3, np.int64)}


@pytest.mark.parametrize("tiles", [1, 3])
def test_apples_runtime_answers_tile_by_tile(folder: Path, tiles: int) -> None:
    inputs = feeds(tiles)
    with CoreAiBackend().open_files(folder, Stage.RESTORATION, GRAPH) as engine:
        got = engine.run(engine.cast(inputs))
        again = engine.run(engine.cast(feeds(tiles)))
    np.testing.assert_allclose(got["velocity"], 3 * inputs["latent"], rtol=1e-6)
    np.testing.assert_allclose(got["sum.0"], inputs["latent"].sum(1), rtol=1e-5, atol=1e-6)
    assert not np.array_equal(got["velocity"], again["velocity"])  # the first answer is not the second's memory


def test_it_runs_inside_a_running_loop(folder: Path) -> None:
    """As in a notebook."""
    inputs = feeds(1)

    async def inside() -> np.ndarray:
        with CoreAiBackend().open_files(folder, Stage.RESTORATION, GRAPH) as engine:
            return np.asarray(engine.run(engine.cast(inputs))["velocity"])

    np.testing.assert_allclose(asyncio.run(inside()), 3 * inputs["latent"], rtol=1e-6)


def test_a_closed_engine_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    engine = CoreAiBackend().open_files(folder, Stage.RESTORATION, GRAPH)
    assert list(tmp_path.iterdir())  # what the runtime compiled
    engine.close()
    engine.close()
    assert list(tmp_path.iterdir()) == []
    assert [thread for thread in threading.enumerate() if thread.name.startswith("coreai")] == []
    with pytest.raises(EngineError, match="is closed"):
        engine.run(feeds(1))


def test_a_damaged_package_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.aimodel"
    path.mkdir()
    (path / "metadata.json").write_text("{}")
    with pytest.raises(EngineError, match="Core AI does not load the package") as caught:
        LoadedPackage(path)
    assert str(path) in str(caught.value)
    with pytest.raises(EngineError, match="Core AI failed"):
        LoadedPackage(folder / "restoration/64x64.aimodel").run({"latent": np.zeros((1, 5), np.float32)})


def test_a_graph_without_packages_is_refused(tmp_path: Path) -> None:
    graph = Graph(path="flow/any.onnx", size="64x64", weights=(), inputs=GRAPH.inputs, outputs=GRAPH.outputs)
    with pytest.raises(EngineError, match="stage 'flow' has no Core AI package"):
        CoreAiBackend().open_files(tmp_path, Stage.FLOW, graph)


def test_the_missing_library_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coreai.authoring", None)
    with pytest.raises(MissingExtraError, match="extra 'coreai'"):
        CoreAiBackend().open_files(tmp_path, Stage.RESTORATION, GRAPH)


@pytest.mark.parametrize(("system", "own", "other"), [("Linux", "interpreter", "system"), ("Darwin", "system", "cuda")])
def test_a_provider_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, system: str, own: str, other: str
) -> None:
    monkeypatch.setattr(module.platform, "system", lambda: system)
    assert CoreAiBackend().provider == CoreAiBackend(own).provider == own
    with pytest.raises(UsageError, match=f"no provider '{other}' on this system"):
        CoreAiBackend(other)


def test_the_bundles_target_chooses_the_back_end() -> None:
    bundle = types.SimpleNamespace(manifest=types.SimpleNamespace(target="coreai"), has_onnx_graphs=False)
    assert RestoreOptions().open_backend(bundle).name == "coreai"  # type: ignore[arg-type]
