"""Faults planted in a half-precision package: the gate finds each of them, though rounding would hide some."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from coreml_programs import changed
from export_support import make_nano

from livemoments.coreml.package import Package
from livemoments.distances import relative_l2
from livemoments.errors import ParityError
from livemoments.export.coreml.convert import convert
from livemoments.export.coreml.gate import DRIFT_RATIO, UNROUNDED_REL_L2, check_part, run_module, run_package
from livemoments.export.coreml.modules import Part, build
from livemoments.export.opening import open_planner
from livemoments.export.options import ExportOptions
from livemoments.types import Size, Stage

TILE = Size(64, 64)


class Written(NamedTuple):
    """The first block of a RestorationNet in half precision, and what it is held against."""

    path: Path
    own: Part
    exact: Part
    inputs: dict[str, np.ndarray]


@pytest.fixture(name="written", scope="module")
def fixture_written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("gate")
    checkpoint = make_nano(folder / "checkpoint")
    own, exact = (
        build(open_planner(checkpoint, ExportOptions(precision=precision, steps=(3,))), Stage.RESTORATION, TILE, (0, 1))
        for precision in ("fp16", "fp32")
    )
    convert(own, folder / "part.mlpackage")
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    inputs = {spec.name: rng.standard_normal([int(n) for n in spec.shape]).astype(np.float32) for spec in own.inputs}
    return Written(folder / "part.mlpackage", own, exact, inputs | {"step": np.array([1], np.int32)})


def test_a_right_package_passes(written: Written) -> None:
    parity, truth = check_part(written.path, written.own, written.exact, written.inputs, "the part")
    assert 0 < parity.unrounded <= UNROUNDED_REL_L2
    assert 1e-4 < parity.torch_drift < 5e-3
    assert parity.drift <= DRIFT_RATIO * parity.torch_drift
    assert {name: value.shape for name, value in truth.items()} == {"image.1": (1, 256, 32), "text.1": (1, 3, 32)}


def first(block: Any, kind: str) -> Any:
    return next(operation for operation in block.operations if operation.type == kind)


def subtract(block: Any) -> None:
    """The last addition: of what the feed-forward layer made."""
    [operation for operation in block.operations if operation.type == "add"][-1].type = "sub"


def other_gelu(block: Any) -> None:
    names = {argument.name for op in block.operations if op.type == "gelu" for argument in op.inputs["mode"].arguments}
    for operation in block.operations:
        if operation.type == "const" and operation.outputs[0].name in names:
            operation.attributes["val"].immediateValue.tensor.strings.values[0] = "EXACT"


def shuffle_weights(block: Any) -> None:
    """Two linears of one shape get each other's weights."""
    shapes: dict[tuple[int, ...], Any] = {}
    constants = {op.outputs[0].name: op.outputs[0].type.tensorType for op in block.operations if op.type == "const"}
    for operation in (op for op in block.operations if op.type == "linear"):
        weight = operation.inputs["weight"].arguments[0]
        shape = tuple(d.constant.size for d in constants[weight.name].dimensions)
        if shape in shapes:
            weight.name, shapes[shape].name = shapes[shape].name, weight.name
            return
        shapes[shape] = weight
    raise AssertionError("no two linears of one shape")


def swap_keys_values(block: Any) -> None:
    inputs = first(block, "scaled_dot_product_attention").inputs
    key, value = inputs["key"].arguments[0], inputs["value"].arguments[0]
    key.name, value.name = value.name, key.name


@pytest.mark.parametrize("fault", [subtract, other_gelu, shuffle_weights, swap_keys_values])
def test_a_planted_fault_is_found(written: Written, tmp_path: Path, fault: Callable[[Any], None]) -> None:
    path = changed(written.path, tmp_path / "faulty.mlpackage", fault)
    with pytest.raises(ParityError, match="the conversion changed what is computed"):
        check_part(path, written.own, written.exact, written.inputs, "the part")


def test_rounding_alone_would_hide_another_gelu(written: Written, tmp_path: Path) -> None:
    """Why packages are also run without any rounding: the drift's limit does not see this fault."""
    path = changed(written.path, tmp_path / "faulty.mlpackage", other_gelu)
    truth = run_module(written.exact.module, written.exact, written.inputs)
    half = run_module(written.own.module, written.own, written.inputs)
    got = run_package(Package.open(path), written.own, written.inputs, "declared")
    for name, want in truth.items():
        assert relative_l2(got[name], want) <= DRIFT_RATIO * relative_l2(half[name], want)


def test_more_roundings_than_torch_has_are_refused(written: Written, tmp_path: Path) -> None:
    """Tokens that are coarser than half precision: right without rounding, but further off than half precision is."""

    def coarse(block: Any) -> None:
        """x + 64 - 64 after the last addition, which is exact only in float32."""
        last = [operation for operation in block.operations if operation.type == "add"][-1]
        wanted = last.outputs[0].name
        for number, (kind, value) in enumerate((("add", 64.0), ("sub", 64.0))):
            step = block.operations.add()
            step.CopyFrom(last)
            step.type = kind
            last.outputs[0].name = f"coarse_{number}"
            step.inputs["x"].arguments[0].name = f"coarse_{number}"
            number_argument = step.inputs["y"].arguments[0]
            number_argument.ClearField("binding")
            number_argument.value.type.tensorType.dataType = 10  # float16
            number_argument.value.immediateValue.tensor.bytes.values = np.float16(value).tobytes()
            step.outputs[0].name = wanted
            last = step

    path = changed(written.path, tmp_path / "coarse.mlpackage", coarse)
    with pytest.raises(ParityError, match="torch's own half precision"):
        check_part(path, written.own, written.exact, written.inputs, "the part")


def test_outputs_that_are_not_finite_are_refused(written: Written) -> None:
    inputs = written.inputs | {"latent": np.full_like(written.inputs["latent"], np.nan)}
    with pytest.raises(ParityError, match="holds NaN or infinity"):
        check_part(written.path, written.own, written.exact, inputs, "the part")
