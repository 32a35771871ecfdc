"""The two forms of attention: what onnxruntime takes and what TensorRT takes give the same, stage by stage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_support import make_nano
from graph_runs import farthest, random_feeds, run_graph

from livemoments.bundle import Bundle
from livemoments.export.passes.name_modules import MODULE
from livemoments.export.plan import Planner, StageGraph
from livemoments.export.tensorrt.prepare import prepare
from livemoments.export.to_onnx import WEIGHTS_NAME, WeightsFile, save, trace
from livemoments.reference.checkpoint import read_configs, read_prompt
from livemoments.reference.layout import locate
from livemoments.schedule import build_schedule
from livemoments.types import Size, Stage

SIZE = Size(height=48, width=64)
LIMITS = {"fp32": 1e-5, "fp16": 4e-3}
"""Relative L2 distance of one form from the other: what rounding in another order gives, and room for chance."""
TYPES = {"fp32": torch.float32, "fp16": torch.float16}
STAGES = [stage for stage in Stage if stage is not Stage.FLOW]
"""RAFT has no attention."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nano(tmp_path_factory.mktemp("nano") / "checkpoint")


def plan(checkpoint: Path, stage: Stage, precision: str) -> StageGraph:
    files = locate(checkpoint)
    configs = read_configs(files)
    prompt = read_prompt(files, configs.transformer)
    planner = Planner(files, configs, prompt, build_schedule((1, 2)), TYPES[precision], "per-block")
    return planner.graph(stage, SIZE)


def write(graph: StageGraph, folder: Path, *, fuse: bool) -> Path:
    folder.mkdir()
    weights = WeightsFile(folder / WEIGHTS_NAME)
    save(trace(graph, fuse=fuse)[0], folder / "graph.onnx", weights)
    weights.close()
    return folder / "graph.onnx"


@pytest.mark.parametrize("stage", [pytest.param(Stage.FLOW, marks=pytest.mark.slow), *STAGES])
def test_a_bundle_for_onnxruntime_rewritten_for_tensorrt_gives_the_same(tiny_bundle: Path, stage: Stage) -> None:
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.graph(stage, bundle.tile_sizes[0])
    prepared = prepare(tiny_bundle / graph.path, bundle.tile_sizes[0], batch=2)
    assert {node.domain for node in prepared.model.graph} == {""}
    values = [*prepared.model.graph.inputs, *(value for node in prepared.model.graph for value in node.outputs)]
    assert all(isinstance(axis, int) for value in values for axis in value.shape or ())
    feeds, weights = random_feeds(graph.inputs, 2, bundle.tile_sizes[0]), (tiny_bundle / graph.path).parent
    want = run_graph(tiny_bundle / graph.path, feeds, weights)
    assert farthest(run_graph(prepared.serialize(), feeds, weights), want) < LIMITS["fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("stage", STAGES)
def test_all_forms_agree(checkpoint: Path, tmp_path: Path, stage: Stage, precision: str) -> None:
    """Traced for onnxruntime, traced for TensorRT, and the first rewritten to the standard one."""
    graph = plan(checkpoint, stage, precision)
    fused = write(graph, tmp_path / "fused", fuse=True)
    standard = write(graph, tmp_path / "standard", fuse=False)
    rewritten = prepare(fused, SIZE, batch=2).serialize()
    feeds = random_feeds(graph.inputs, 2)
    want = run_graph(fused, feeds, fused.parent)
    assert farthest(run_graph(standard, feeds, standard.parent), want) < LIMITS[precision]
    assert farthest(run_graph(rewritten, feeds, fused.parent), want) < LIMITS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [Stage.REFERENCE, Stage.RESTORATION, Stage.VAE_DECODER])
def test_the_standard_form_has_standard_operators_alone_and_knows_its_modules(
    checkpoint: Path, tmp_path: Path, stage: Stage
) -> None:
    graph = plan(checkpoint, stage, "fp16")
    fused = ir.load(write(graph, tmp_path / "fused", fuse=True))
    standard = ir.load(write(graph, tmp_path / "standard", fuse=False))
    assert {node.domain for node in fused.graph} == {"", "com.microsoft"}
    assert {node.domain for node in standard.graph} == {""}
    attentions = [node for node in standard.graph if node.op_type == "Attention"]
    assert len(attentions) == sum(node.op_type == "MultiHeadAttention" for node in fused.graph) > 0
    assert all(len(node.outputs) == 1 for node in attentions)
    for model in (fused, standard):
        named = [node.metadata_props.get(MODULE) for node in model.graph if node.op_type in ("MatMul", "Conv")]
        assert sum(name is not None for name in named) > 0.8 * len(named)
        modules = {name for name in named if name}
        assert not any(name.startswith(("network.", "_")) for name in modules)
        assert any("attn" in name or "attentions" in name for name in modules)


def test_raft_is_written_for_the_opset_that_cuda_serves(tiny_bundle: Path, tmp_path: Path) -> None:
    """onnxruntime's CUDA provider has no InstanceNormalization of opset 22; both compute the same, to the bit."""
    bundle = Bundle.open(tiny_bundle)
    graph = bundle.graph(Stage.FLOW, bundle.tile_sizes[0])
    model = ir.load(tiny_bundle / graph.path)
    assert model.opset_imports[""] == 21
    assert sum(node.op_type == "InstanceNormalization" for node in model.graph) == 45
    assert all(
        ir.load(path).opset_imports[""] == 23 for path in tiny_bundle.glob("*/*.onnx") if path.parent.name != "flow"
    )
    rng = np.random.default_rng()
    feeds = {spec.name: rng.random((1, 3, 64, 96), np.float32) for spec in graph.inputs}
    # onnx_ir reads no weights that have several links, as a bundle has that others were made from
    path = tmp_path / "flow" / Path(graph.path).name
    folder = shutil.copytree((tiny_bundle / graph.path).parent, path.parent)
    written = run_graph(path, feeds, folder)
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    model.graph.opset_imports[""] = 23
    relabelled = run_graph(ir.to_proto(model).SerializeToString(), feeds, folder)
    np.testing.assert_array_equal(written[0], relabelled[0])
