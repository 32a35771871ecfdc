"""Faults planted in a Core AI package: the gate, which runs Apple's own runtime, finds each; and fewer bits."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

pytest.importorskip("coreai_torch", reason="the extra 'coreai' is not installed ('make coreai')")

from coreai.authoring import AIModelAsset
from export_support import make_nano
from torch.export import ExportedProgram
from torch.fx import Node

from livemoments.coreai.backend import LoadedPackage
from livemoments.coreml.names import feature_name
from livemoments.distances import relative_l2
from livemoments.errors import ParityError
from livemoments.export.coreai import attention
from livemoments.export.coreai import convert as module
from livemoments.export.coreai.convert import convert, traced
from livemoments.export.coreai.gate import check_twin
from livemoments.export.coreml.gate import UNROUNDED_REL_L2, run_module
from livemoments.export.coreml.modules import Part, build
from livemoments.export.opening import open_planner
from livemoments.export.options import ExportOptions
from livemoments.types import Size, Stage

TILE = Size(64, 64)
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class Written(NamedTuple):
    """The first block of a RestorationNet, its program, and inputs for it."""

    part: Part
    program: ExportedProgram
    plain: ExportedProgram
    inputs: dict[str, np.ndarray]


@pytest.fixture(name="written", scope="module")
def fixture_written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    checkpoint = make_nano(tmp_path_factory.mktemp("gate") / "checkpoint")
    part = build(open_planner(checkpoint, ExportOptions(steps=(3,))), Stage.RESTORATION, TILE, (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compute_operands", lambda program: 0)
        plain = traced(part)
    program = copy.deepcopy(plain)
    assert attention.compute_operands(program) == 1
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    inputs = {spec.name: rng.standard_normal([int(n) for n in spec.shape]).astype(np.float32) for spec in part.inputs}
    return Written(part, program, plain, inputs | {"step": np.array([1], np.int32)})


def write(part: Part, program: ExportedProgram, path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    """The package of a program that was traced before."""
    monkeypatch.setattr(module, "traced", lambda part: program)
    convert(part, path, **options)
    return path


def test_a_right_package_passes(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(written.part, written.program, tmp_path / "part.aimodel", monkeypatch)
    assert 0 < check_twin(path, written.part, written.inputs, "the part") <= UNROUNDED_REL_L2


def nodes(program: ExportedProgram, *targets: Any) -> list[Node]:
    found = [node for node in program.graph_module.graph.nodes if node.target in targets]
    assert found
    return found


def subtract(program: ExportedProgram) -> None:
    """The last addition: of what the feed-forward layer made."""
    nodes(program, torch.ops.aten.add.Tensor)[-1].target = torch.ops.aten.sub.Tensor


def other_gelu(program: ExportedProgram) -> None:
    (gelu, *_) = nodes(program, torch.ops.aten.gelu.default)
    assert gelu.kwargs == {"approximate": "tanh"}
    gelu.kwargs = {"approximate": "none"}


def shuffle_weights(program: ExportedProgram) -> None:
    """Two linears of one shape get each other's weights."""
    seen: dict[tuple[int, ...], Node] = {}
    for linear in nodes(program, torch.ops.aten.addmm.default):
        turned: Any = linear.args[2]  # the weight's transpose
        shape = tuple(turned.meta["val"].shape)
        if shape in seen:
            other = seen[shape]
            turned.args, other.args = other.args, turned.args
            return
        seen[shape] = turned
    raise AssertionError("no two linears of one shape")


def swap_keys_values(program: ExportedProgram) -> None:
    (node,) = nodes(program, ATTENTION)
    query, key, value = node.args
    node.args = (query, value, key)


@pytest.mark.parametrize("fault", [subtract, other_gelu, shuffle_weights, swap_keys_values])
def test_a_planted_fault_is_found(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[ExportedProgram], None]
) -> None:
    faulty = copy.deepcopy(written.program)
    fault(faulty)
    faulty.graph_module.graph.lint()
    path = write(written.part, faulty, tmp_path / "faulty.aimodel", monkeypatch)
    with pytest.raises(ParityError, match="the conversion changed what is computed"):
        check_twin(path, written.part, written.inputs, "the part")


def test_answers_that_are_not_numbers_are_refused(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(written.part, written.program, tmp_path / "part.aimodel", monkeypatch)
    inputs = written.inputs | {"latent": np.full_like(written.inputs["latent"], np.nan)}
    with pytest.raises(ParityError):
        check_twin(path, written.part, inputs, "the part")


def makers_of_operands(package: Path) -> list[str]:
    """What makes the operands of a package's attention, by the operators' names."""
    text = str(AIModelAsset.load(package).program)
    (called,) = re.findall(r"invoke @sdpa\w*\((.*?)\)", text)
    makers = dict(re.findall(r"(%\d+) = coreai\.([\w.]+)", text[text.index("@main") :]))
    return [makers[name] for name in called.split(", ")]


def test_attentions_operands_are_computed(written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the remedy each comes from a transpose, and a clone between them does not help: it is dropped."""
    path = write(written.part, written.program, tmp_path / "part.aimodel", monkeypatch)
    assert {name.removeprefix("decomposable.") for name in makers_of_operands(path)} == {"broadcasting_mul"}
    cloned = copy.deepcopy(written.plain)
    (node,) = nodes(cloned, ATTENTION)
    with cloned.graph_module.graph.inserting_before(node):
        copies = [
            cloned.graph_module.graph.call_function(
                torch.ops.aten.clone.default, (operand,), {"memory_format": torch.contiguous_format}
            )
            for operand in node.args
        ]
    node.args = tuple(copies)
    for name, program in (("plain", written.plain), ("cloned", cloned)):
        path = write(written.part, program, tmp_path / f"{name}.aimodel", monkeypatch)
        assert makers_of_operands(path) == ["transpose"] * 3


@pytest.mark.parametrize(("bits", "share", "least", "most"), [(8, 0.5, 5e-4, 1e-2), (4, 0.35, 5e-3, 0.15)])
def test_fewer_bits_are_smaller_and_near(tmp_path: Path, bits: int, share: float, least: float, most: float) -> None:
    """A linear of 256 x 512 whose weights are most of the package."""
    linear = torch.nn.Linear(512, 256).requires_grad_(False)
    from livemoments.types import TensorSpec

    part = Part(linear, (TensorSpec("x", "float32", (3, 512)),), (TensorSpec("y", "float32", (3, 256)),))
    whole, small = tmp_path / "whole.aimodel", tmp_path / "small.aimodel"
    convert(part, whole)
    convert(part, small, bits=bits)
    sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in (whole, small)]
    assert sizes[1] < share * sizes[0]
    inputs = {"x": np.random.default_rng().standard_normal((3, 512)).astype(np.float32)}
    loaded = LoadedPackage(small)
    got = loaded.run({feature_name("x"): inputs["x"]})["y"]
    loaded.close()
    assert least < relative_l2(got, run_module(linear, part, inputs)["y"]) < most
