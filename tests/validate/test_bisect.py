"""Planted faults: each is named by its block, module and node, and fails the ladder; a good bundle has none."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import planted_faults as faults
import pytest
from ladder_support import InHalf, Without, recording_of

from livemoments.bundle import Bundle, open_bundle
from livemoments.export.pipeline import export_bundle
from livemoments.limits import load_limits
from livemoments.quantize.calibrate.run import calibrate
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.types import Size, Stage
from livemoments.validate.ladder.bisect import bisect, first_suspect
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.graph_values.block_errors import BlockError
from livemoments.validate.ladder.tensor_distance import Distance
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import Bisection, Rung

TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)
_B = "transformer_blocks."


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault and what must be said of it; ``module`` without its block; ``output`` None: any of a few nodes."""

    stage: Stage
    fault: faults.Fault
    block: int
    module: str
    op: str
    output: str | None = None


QUICK = {
    "wrong GELU": Case(Stage.RESTORATION, faults.exact_gelu(1), 1, "ff.net.0", "Gelu", "gelu_2"),
    "swapped weight": Case(
        Stage.RESTORATION, faults.swapped_weights(f"{_B}2.attn.to_q", f"{_B}2.attn.to_k"), 2, "attn.to_k", "MatMul"
    ),
    "keys as values": Case(
        Stage.RESTORATION, faults.wrong_input("reference_v.2", "reference_k.2", "Concat"), 2, "attn", "Concat"
    ),
    "wrong timestep": Case(
        Stage.RESTORATION, faults.shifted_tables(f"{_B}1.norm1.table"), 1, "norm1", "Gather", "index_select_5"
    ),
}
SLOW = {
    "wrong GELU of the reference's text": Case(
        Stage.REFERENCE, faults.exact_gelu(2, "ff_context"), 2, "ff_context.net.0", "Gelu", "gelu_5"
    ),
    "GELU written out": Case(Stage.RESTORATION, faults.gelu_by_erf(2), 2, "ff.net.0", "Div", "planted.d"),
    "weights of two blocks": Case(
        Stage.RESTORATION, faults.swapped_weights(f"{_B}1.ff.net.2", f"{_B}2.ff.net.2"), 1, "ff.net.2", "MatMul"
    ),
    "transposed heads": Case(Stage.RESTORATION, faults.heads_transposed(1, 4), 1, "attn", "Reshape", "planted.heads"),
    "wrong timestep of a text norm": Case(
        Stage.REFERENCE, faults.shifted_tables(f"{_B}1.norm1_context.table"), 1, "norm1_context", "Gather"
    ),
    "wrong timestep everywhere": Case(Stage.RESTORATION, faults.shifted_tables(".table"), 0, "norm1", "Gather"),
    "motion subtracted": Case(
        Stage.RESTORATION, faults.other_operator("Add", "Sub", "select_2"), 2, "attn", "Sub", "add_462"
    ),
    "residual subtracted": Case(
        Stage.RESTORATION, faults.other_operator("Add", "Sub", "mul_207"), 1, "attn.to_out.0", "Sub", "add_342"
    ),
    "large bias": Case(Stage.RESTORATION, faults.scaled_bias(f"{_B}2.attn.to_out.0", 1.5), 2, "attn.to_out.0", "Add"),
}


@pytest.fixture(scope="module")
def recording(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recording_of(tiny_checkpoint, tmp_path_factory)


def failing(bundle: Bundle, recording: Recording, *stages: Stage) -> list[Rung]:
    rungs = compare(bundle, recording, levels=("block", "network"), stages=stages)
    assert rungs
    return [rung for rung in rungs if rung.status == "fail"]


def check(case: Case, bundle: Bundle, recording: Recording) -> Bisection:
    """The suspect is the planted fault, and the ladder fails from its block on and nowhere before."""
    found = bisect(bundle, recording, stages=(case.stage,))
    (suspect,) = found.suspects
    assert (suspect.stage, suspect.block) == (str(case.stage), f"{_B}{case.block}")
    assert suspect.module == f"{_B}{case.block}.{case.module}"
    assert suspect.op == case.op
    if case.output is not None:
        assert suspect.output == case.output
    assert suspect.node is not None
    assert suspect.node in found.detail
    assert suspect.rel_l2 is not None
    assert suspect.before is not None
    assert suspect.rel_l2 > 50 * suspect.limit or bundle.manifest.precision.startswith("int")
    assert suspect.before < 0.05
    bad = failing(bundle, recording, case.stage)
    assert f"{case.stage}.block{case.block}.modules" in [rung.name for rung in bad]
    earlier = {f"{case.stage}.block{block}{part}" for block in range(case.block) for part in ("", ".modules")}
    assert not earlier & {rung.name for rung in bad}
    return found


def test_a_good_bundle_has_no_suspect(tiny_bundle: Path, recording: Recording) -> None:
    bundle = open_bundle(tiny_bundle)
    found = bisect(bundle, recording, stages=TRANSFORMERS)
    assert found.suspects == ()
    assert found.boundaries == 2 * (2 * 3 + 2 * 4 - 1)  # two steps; the last block of each has no text, or nothing
    assert found.detail == "every part is within its limit"
    rungs = compare(bundle, recording, levels=("block", "network"), stages=TRANSFORMERS)
    assert {rung.status for rung in rungs} == {"pass"}
    assert {rung.name for rung in rungs} >= {"restoration.block3", "restoration.block3.modules", "reference"}
    assert max(rung.rel_l2 or 0 for rung in rungs) < 5e-6


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(name: str, tiny_bundle: Path, recording: Recording, tmp_path: Path) -> None:
    case = QUICK[name]
    check(case, faults.plant(tiny_bundle, tmp_path / "faulty", case.stage, case.fault), recording)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_other_planted_faults_are_found(name: str, tiny_bundle: Path, recording: Recording, tmp_path: Path) -> None:
    case = SLOW[name]
    found = check(case, faults.plant(tiny_bundle, tmp_path / "faulty", case.stage, case.fault), recording)
    if name == "wrong timestep everywhere":
        assert re.search(r"(\d) of \1 AdaLN tables", found.detail)
    if name == "GELU written out":
        assert "5 nodes lie between" in found.detail


@pytest.fixture(scope="module")
def make(
    tiny_bundle: Path, tiny_checkpoint: Path, recording: Recording, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The tiny checkpoint as another kind of bundle, made once."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            place = tmp_path_factory.mktemp("kinds") / kind
            wanted = {"precision": "fp16"} if kind == "fp16" else {"kv_layout": "stacked"}
            if kind in ("fp16", "stacked"):
                export_bundle(
                    tiny_checkpoint,
                    place,
                    tiles=(Size(128, 128),),
                    overlap=16,
                    steps=(3, 6),
                    verify="none",
                    stages=None,
                    **wanted,
                )
            else:
                given = calibrate(tiny_bundle, recording.path.parent / "set", flow="dis") if kind == "int8" else None
                quantize_bundle(tiny_bundle, place, recipe=kind, calibration=given, allow_slower=True)
            made[kind] = place
        return made[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "stacked", "int8-dynamic", "int8-weights", "int8"])
def test_other_kinds_of_bundle(kind: str, make: Callable[[str], Path], recording: Recording, tmp_path: Path) -> None:
    source = make(kind)
    good = open_bundle(source)
    assert bisect(good, recording, stages=TRANSFORMERS).suspects == ()
    assert failing(good, recording, *TRANSFORMERS) == []
    product = {"int8-dynamic": "MatMulInteger", "int8-weights": "MatMulNBits"}.get(kind, "MatMul")
    swapped = dataclasses.replace(QUICK["swapped weight"], op=product)
    check(swapped, faults.plant(source, tmp_path / "swapped", swapped.stage, swapped.fault), recording)
    gelu = QUICK["wrong GELU"]
    faulty = faults.plant(source, tmp_path / "gelu", gelu.stage, gelu.fault)
    check(gelu, faulty, recording)
    if kind in ("fp16", "int8-dynamic"):  # the whole network's error hides it: only the block's own operations tell
        assert [rung.name for rung in failing(faulty, recording, gelu.stage)] == ["restoration.block1.modules"]


def test_without_modules_the_block_is_named(tiny_bundle: Path, recording: Recording, tmp_path: Path) -> None:
    case = QUICK["swapped weight"]
    faulty = faults.plant(tiny_bundle, tmp_path / "faulty", case.stage, case.fault)
    found = bisect(faulty, Without(recording, r"\.module\."), stages=(case.stage,))
    (suspect,) = found.suspects
    assert (suspect.block, suspect.module, suspect.node, suspect.op) == (f"{_B}2", None, None, None)
    assert suspect.before == 0.0
    assert "record with --detail modules" in found.detail

    # what enters a block was not recorded: the jump on the engine's own way tells
    apart = Without(recording, r"\.module\.|\.block1\.|embed")
    (suspect,) = bisect(faulty, apart, stages=(case.stage,)).suspects
    assert suspect.block == f"{_B}2"

    found = bisect(faulty, Without(recording, r"\.module\.|\.block\d|embed"), stages=(case.stage,))
    (suspect,) = found.suspects
    assert (suspect.stage, suspect.block, suspect.output) == ("restoration", None, "velocity")
    assert "no block was recorded" in found.detail


def test_a_recording_in_half_precision_is_not_taken_for_a_fault(
    tiny_bundle: Path, recording: Recording, tmp_path: Path
) -> None:
    half, good = InHalf(recording), open_bundle(tiny_bundle)
    assert bisect(good, half, stages=TRANSFORMERS).suspects == ()
    assert failing(good, half, *TRANSFORMERS) == []
    case = QUICK["swapped weight"]
    check(case, faults.plant(tiny_bundle, tmp_path / "faulty", case.stage, case.fault), half)


def test_a_fault_outside_of_the_transformers_names_the_stage(
    tiny_bundle: Path, recording: Recording, tmp_path: Path
) -> None:
    fault = faults.other_operator("Add", "Sub", "conv2d_2")
    faulty = faults.plant(tiny_bundle, tmp_path / "faulty", "vae_decoder", fault)
    found = bisect(faulty, recording, stages=(Stage.VAE_DECODER,))
    (suspect,) = found.suspects
    assert (suspect.stage, suspect.block, suspect.output) == ("vae_decoder", None, "image")
    assert "record with --detail modules" in found.detail


def boundaries(own: list[float], recording_pass: object = None) -> list[BlockError]:
    given = recording_pass or object()

    def distance(error: float) -> Distance:
        return Distance(error, 0.0, 1.0, 0.0)

    return [BlockError(i, "hidden", given, distance(error), None) for i, error in enumerate(own)]  # type: ignore[arg-type]


def test_rounding_that_grows_accuses_no_block_and_a_jump_does() -> None:
    limits = load_limits("fp16")
    slow_growth = boundaries([1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2])
    assert first_suspect(slow_growth, limits) is None
    jump = first_suspect(boundaries([1e-3, 1.2e-3, 2e-2, 2.1e-2]), limits)
    assert jump is not None
    assert jump.block == 2
    broken = first_suspect(boundaries([1e-3, math.nan, math.nan]), limits)
    assert broken is not None
    assert broken.block == 1
    within = first_suspect(boundaries([1e-5, 1e-3]), limits)  # a jump, but within the limit
    assert within is None
