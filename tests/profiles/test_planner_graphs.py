"""What the planner counts in a graph: shapes, operations against torch's counter, lifetimes worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from livemoments.bundle import Bundle
from livemoments.errors import BundleError
from livemoments.export.plan import Planner
from livemoments.export.program import nest
from livemoments.export.stages import PER_BLOCK
from livemoments.profiles.planner.cost import StageCost, cost_of_stage
from livemoments.profiles.planner.graph import CostGraph, cost_graph, read_graph
from livemoments.profiles.planner.liveness import lifetimes
from livemoments.profiles.planner.ort_cpu import as_ort_runs_it
from livemoments.reference.checkpoint import load_flow, read_configs, read_prompt
from livemoments.reference.layout import locate
from livemoments.schedule import build_schedule
from livemoments.types import Size, Stage

FLOPS_LIMIT = 0.02
"""Relative difference from torch's counter."""
FOLDED = 128
"""Constants of a graph (scales, epsilons) that the manifest does not count as parameters."""
FLOAT = 4


@pytest.mark.parametrize("stage", list(Stage))
def test_products_are_those_that_torch_counts(stage: Stage, tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """The bundle's graph against the PyTorch module that it was traced from, counted by torch's own counter."""
    size = Size(128, 192) if stage is Stage.FLOW else Size(128, 128)
    files = locate(tiny_checkpoint)
    counter = FlopCounterMode(display=False)
    if stage is Stage.FLOW:
        module: torch.nn.Module = load_flow(files, torch.device("cpu"))
        arguments: tuple[torch.Tensor, ...] = tuple(torch.zeros(1, 3, size.height, size.width) for _ in range(2))
    else:
        configs = read_configs(files)
        prompt = read_prompt(files, configs.transformer)
        plan = Planner(files, configs, prompt, build_schedule((3, 6)), torch.float32, PER_BLOCK).graph(stage, size)
        shapes = [tuple(1 if axis == "batch" else int(axis) for axis in spec.shape) for spec in plan.inputs]
        arguments = tuple(
            torch.empty(shape, dtype=getattr(torch, spec.dtype), device="meta")
            for shape, spec in zip(shapes, plan.inputs, strict=True)
        )
        module, arguments = plan.module.to("meta"), nest(plan, arguments)
    with torch.no_grad(), counter:
        module(*arguments)
    found, expected = cost_of_stage(Bundle.open(tiny_bundle), stage, size).flops, counter.get_total_flops()
    assert expected > 1e6
    assert abs(found - expected) / expected < FLOPS_LIMIT


@pytest.mark.parametrize("stage", list(Stage))
def test_every_shape_and_parameter_is_found(tiny_bundle: Path, stage: Stage) -> None:
    bundle = Bundle.open(tiny_bundle)
    one, three = (cost_of_stage(bundle, stage, Size(128, 128), batch) for batch in (1, 3))
    assert 0 <= one.parameters - bundle.stage(stage).parameters <= FOLDED
    assert three.parameters == one.parameters
    assert three.flops == pytest.approx(3 * one.flops, rel=0.02)  # what only the text needs is not repeated
    assert one.moved_bytes > one.weight_bytes
    assert one.live_bytes > one.output_bytes > 0


def test_shapes_are_those_of_a_real_run(tiny_bundle: Path) -> None:
    bundle, size = Bundle.open(tiny_bundle), Size(128, 128)
    from livemoments.runtime.backends.ort import OrtBackend

    for stage in (Stage.FLOW, Stage.VAE_ENCODER):
        graph = bundle.graph(stage, size)
        found = read_graph(bundle.path / graph.path, {"batch": 1, "height": 128, "width": 128})
        inputs = {name: np.zeros(found.tensors[name].shape, np.float32) for name in found.inputs}
        with OrtBackend("cpu", 1).open(bundle, stage, size) as engine:
            results = engine.run(inputs)
        assert {name: array.shape for name, array in results.items()} == {
            name: found.tensors[name].shape for name in found.outputs
        }


# Lifetimes, by hand


def graph_of(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> CostGraph:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shapes["x"])]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, np.ones(shape, np.float32).tobytes(), raw=True)
        for name, shape in shapes.items()
        if name != "x"
    ]
    graph = helper.make_graph(list(nodes), "g", inputs, made, weights)
    return cost_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), {})


def test_a_chain_of_elementwise_operators_needs_one_buffer() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Exp", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    found = lifetimes(graph_of(nodes, ["y"], {"x": (8, 32), "w": (32, 32)}))
    one = 8 * 32 * FLOAT
    assert found.held_bytes == (one, one, one, 2 * one)
    assert (found.peak_bytes, found.live_bytes) == (2 * one, 2 * one)
    assert (found.block_bytes, found.output_bytes) == (one, one)


def test_an_input_that_is_read_again_is_not_written_over() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    one = 8 * 32 * FLOAT
    assert lifetimes(graph_of(nodes, ["y"], {"x": (8, 32), "w": (32, 32)})).held_bytes == (
        one,
        2 * one,
        2 * one,
        2 * one,
    )


def test_a_free_buffer_of_the_same_shape_is_held_until_it_is_taken_again() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),  # (8, 32)
        helper.make_node("MatMul", ["a", "v"], ["b"]),  # (8, 64), a is free
        helper.make_node("MatMul", ["b", "u"], ["c"]),  # (8, 32): where a was
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]
    found = lifetimes(graph_of(nodes, ["y"], {"x": (8, 16), "w": (16, 32), "v": (32, 64), "u": (64, 32)}))
    small, large = 8 * 32 * FLOAT, 8 * 64 * FLOAT
    assert found.held_bytes == (small, small + large, small + large, small + large)


def test_renaming_memory_takes_none() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"], axis=0),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    found = lifetimes(graph_of(nodes, ["y"], {"x": (8, 32), "w": (32, 32)}))
    assert found.held_bytes[:2] == (8 * 32 * FLOAT,) * 2


def test_the_block_has_room_for_what_lives_together() -> None:
    rng = np.random.default_rng()
    for _ in range(5):
        widths = [int(width) for width in rng.integers(4, 60, 12)]
        names, nodes, shapes = ["x"], [], {"x": (4, widths[0])}
        for number, width in enumerate(widths[1:]):
            source = int(rng.integers(max(0, number - 2), number + 1))
            shapes[f"w{number}"] = (widths[source], width)
            nodes.append(helper.make_node("MatMul", [names[source], f"w{number}"], [f"t{number}"]))
            names.append(f"t{number}")
        found = lifetimes(graph_of(nodes, [names[-1]], shapes))
        assert found.peak_bytes >= found.live_bytes > 0
        assert found.block_bytes + found.output_bytes >= found.live_bytes


def test_convolutions_are_reordered_once_and_back() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    graph = as_ort_runs_it(graph_of(nodes, ["y"], {"x": (1, 16, 8, 8), "w": (16, 16, 3, 3)}))
    assert [node.op for node in graph.nodes] == ["ReorderInput", "Conv", "Conv", "ReorderOutput", "QuickGelu"]
    narrow = as_ort_runs_it(graph_of(nodes, ["y"], {"x": (1, 3, 8, 8), "w": (3, 3, 3, 3)}))
    assert [node.op for node in narrow.nodes] == ["Conv", "Relu", "Conv", "QuickGelu"]


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    file.write_bytes(b"\x00not a graph")
    with pytest.raises(BundleError, match="is no ONNX graph"):
        read_graph(file, {"batch": 1})
    nodes = [helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")]
    with pytest.raises(BundleError, match="its shapes cannot be found"):
        graph_of(nodes, ["y"], {"x": (2, 2)})


def test_costs_are_data(tiny_bundle: Path) -> None:
    import msgspec

    cost = cost_of_stage(Bundle.open(tiny_bundle), Stage.MOTION, Size(128, 128))
    assert msgspec.json.decode(msgspec.json.encode(cost), type=StageCost) == cost
