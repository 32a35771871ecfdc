"""The real torch-tensorrt, where it is installed (``make torch-tensorrt``), with stand-ins for the device in the
building process: what it makes of every stage, beside what the library's parser makes of the graphs."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from livemoments.bundle import Bundle
from livemoments.export.tensorrt import process
from livemoments.export.tensorrt.build import build_engines
from livemoments.export.tensorrt.options import DEFAULT_SM, BuildOptions
from livemoments.manifest import EngineVia
from livemoments.types import Size, Stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(
        importlib.util.find_spec("torch_tensorrt") is None,
        reason="torch-tensorrt is not installed (make torch-tensorrt)",
    ),
]
STAND_IN = ROOT / "tests" / "support" / "cuda_stand_in.py"
BIND = """
import importlib, inspect, json, sys
sys.path.insert(0, sys.argv[1])
import cuda_stand_in
cuda_stand_in.answer_for_the_device()
for module, name, count, keywords in json.loads(sys.argv[2]):
    called = getattr(importlib.import_module(module), name)
    inspect.signature(called).bind(*range(count), **dict.fromkeys(keywords))
interpreter = importlib.import_module("torch_tensorrt.dynamo.conversion").TRTInterpreter
inspect.signature(interpreter._construct_trt_network_def).bind(None)
inspect.signature(interpreter.validate_conversion).bind(None)
"""


BOTH = (Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION)
"""TensorRT for RTX 1.5, which torch-tensorrt 2.13 takes, refuses the VAE's attention in the form of the graphs; ours
takes it from 1.7 on."""


def export(checkpoint: Path, place: Path, stages: tuple[Stage, ...]) -> Path:
    from livemoments.export.pipeline import export_bundle

    export_bundle(
        checkpoint, place, target="tensorrt", precision="fp16", tiles=(Size(128, 128),), overlap=16, steps=(3, 6),
        stages=stages, verify="none",
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    stages = tuple(stage for stage in Stage if stage is not Stage.FLOW)
    return export(tiny_checkpoint, tmp_path_factory.mktemp("torch-road") / "bundle", stages)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-P", str(STAND_IN)))


def check_roads(bundle: Path, checkpoint: Path, stage: Stage, roads: tuple[EngineVia, ...]) -> None:
    """Each builds one engine for the same GPUs, with the graph's names in it, and the manifest tells them apart."""
    for via in roads:
        source = checkpoint if via == "torch-tensorrt" else None
        options = BuildOptions("rtx", sm=DEFAULT_SM, stages=(stage,), via=via, checkpoint=source)
        _, (one,) = build_engines(bundle, options)
        assert one.is_new
        assert not build_engines(bundle, options)[1][0].is_new
    opened = Bundle.open(bundle)
    (graph,) = opened.stage(stage).graphs
    assert tuple(engine.via for engine in graph.engines) == roads
    weights = sum(opened.manifest.files[name].bytes for name in graph.weights)
    for engine in graph.engines:
        assert engine.layers > 40
        content = (bundle / engine.path).read_bytes()
        assert len(content) > weights / 2
        for spec in (*graph.inputs, *graph.outputs):
            assert spec.name.encode() in content


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("stage", BOTH)
def test_both_roads_build_it(bundle: Path, tiny_checkpoint: Path, stage: Stage) -> None:
    check_roads(bundle, tiny_checkpoint, stage, ("onnx", "torch-tensorrt"))


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("stage", [Stage.VAE_ENCODER, Stage.VAE_DECODER])
def test_torch_tensorrt_builds_the_vae(bundle: Path, tiny_checkpoint: Path, stage: Stage) -> None:
    check_roads(bundle, tiny_checkpoint, stage, ("torch-tensorrt",))


@pytest.mark.usefixtures("without_gpu")
def test_torch_tensorrt_builds_raft(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """With all of its iterations, which the graph gets by a pass; minutes."""
    bundle = export(tiny_checkpoint, tmp_path / "flow", (Stage.FLOW,))
    check_roads(bundle, tiny_checkpoint, Stage.FLOW, ("torch-tensorrt",))


def test_without_a_gpu_one_error_names_the_fix(bundle: Path, tiny_checkpoint: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    road = ["--via", "torch-tensorrt", "--checkpoint", tiny_checkpoint]
    command = ["build", bundle, "--engine", "rtx", *road, "--batch", "2"]  # of which no test built an engine
    answer = subprocess.run([sys.executable, "-m", "livemoments", *command], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "torch-tensorrt cannot be imported (" in answer.stderr
    assert "fix: it takes an NVIDIA GPU, its driver and a PyTorch built for CUDA" in answer.stderr


def test_every_call_is_one_that_the_installed_package_has() -> None:
    """Its inner parts promise nothing: each call of ``torch_network.py`` is bound to the signature that is there."""
    tree = ast.parse((ROOT / "export" / "tensorrt" / "torch_network.py").read_text("utf-8"))
    imported = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch_tensorrt")
        for alias in node.names
    }
    calls = [
        (imported[node.func.id], node.func.id, len(node.args), [keyword.arg for keyword in node.keywords])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported
    ]
    assert {name for _, name, _, _ in calls} == imported.keys()
    command = [sys.executable, "-P", "-c", BIND, str(STAND_IN.parent), json.dumps(calls)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
