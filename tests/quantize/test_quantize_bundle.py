"""Whole bundles: what is written, that it is the same twice, what the manifest says, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cli_support import run
from export_support import make_nano
from quantize_support import contents
from real_runs import assert_refused, copy_linked, listing, save_pair

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db
from livemoments.errors import CheckFailedError, EngineError, ParityError, UsageError
from livemoments.export.pipeline import export_bundle
from livemoments.quantize import acceptance
from livemoments.quantize.acceptance import StageSpeed, compare_stage, refuse_slower
from livemoments.quantize.actions import Action
from livemoments.quantize.calibrate.result import CalibrationResult
from livemoments.quantize.calibrate.run import Counted, calibrate
from livemoments.quantize.pipeline import quantize, quantize_bundle
from livemoments.quantize.recipes import load_recipe
from livemoments.quantize.sample_inputs import SampleInputs
from livemoments.runtime.backends.base import Engine
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.restore import restore
from livemoments.types import Size, Stage

STEPPED = (Stage.REFERENCE, Stage.RESTORATION)
HALF_LIMIT = 2e-3
"""The exporter's own float16 graphs of this checkpoint are 1e-3 from the reference."""
LEAST_PHOTO_DB = {
    "int8": 38.0,
    "int8-tensorrt": 38.0,
    "int8-tensorrt-mixed": 38.0,
    "int8-rotated": 38.0,
    "int8-dynamic": 38.0,
    "int8-weights": 45.0,
    "int4-weights": 32.0,
    "fp8": 38.0,
    "fp8-mixed": 38.0,
    "fp16": 45.0,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration set of one photo."""
    folder = tmp_path_factory.mktemp("set")
    frame, photo = save_pair(folder, Size(128, 128), Size(64, 64))
    for name, file in (("lr", frame), ("ref", photo)):
        (folder / name).mkdir()
        file.rename(folder / name / "0.png")
    return folder


@pytest.fixture(scope="module")
def calibration(tiny_bundle: Path, photos: Path) -> CalibrationResult:
    return calibrate(tiny_bundle, photos, flow="dis", what=Counted(operands=True))


@pytest.fixture(scope="module")
def rotated(tiny_bundle: Path, photos: Path) -> CalibrationResult:
    return calibrate(tiny_bundle, photos, flow="dis", what=Counted(True, load_recipe("int8-rotated").rotation))


@pytest.fixture(scope="module")
def make(
    tiny_bundle: Path,
    calibration: CalibrationResult,
    rotated: CalibrationResult,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Bundle]:
    """The tiny bundle by a recipe's name, made once."""
    made: dict[str, Bundle] = {}

    def of(name: str) -> Bundle:
        if name not in made:
            place = tmp_path_factory.mktemp("made") / name
            recipe = load_recipe(name)
            given = (rotated if recipe.rotation else calibration) if recipe.needs_calibration else None
            made[name] = quantize_bundle(tiny_bundle, place, recipe=name, calibration=given, allow_slower=True)
        return made[name]

    return of


@pytest.mark.parametrize("name", list(LEAST_PHOTO_DB))
def test_the_photo_stays_close(make: Callable[[str], Bundle], tiny_bundle: Path, photos: Path, name: str) -> None:
    images = [
        restore(bundle, photos / "lr" / "0.png", photos / "ref" / "0.png", seed=3, flow="dis").image
        for bundle in (Bundle.open(tiny_bundle), make(name))
    ]
    assert images[0].std() > 5
    assert psnr_db(images[1], images[0], peak=255) >= LEAST_PHOTO_DB[name]


@pytest.mark.parametrize("name", ["int8", "int4-weights"])
def test_two_runs_give_the_same_bytes(
    make: Callable[[str], Bundle], tiny_bundle: Path, calibration: CalibrationResult, tmp_path: Path, name: str
) -> None:
    first = make(name)
    given = calibration if load_recipe(name).needs_calibration else None
    second = quantize_bundle(tiny_bundle, tmp_path / "again", recipe=name, calibration=given, verify=False)
    graphs = {k: v for k, v in contents(first.path).items() if k != "manifest.json"}
    assert graphs == {k: v for k, v in contents(second.path).items() if k != "manifest.json"}
    third = quantize_bundle(tiny_bundle, tmp_path / "third", recipe=name, calibration=given, verify=False)
    assert contents(third.path) == contents(second.path)


def test_the_manifest_says_how_it_was_made(
    make: Callable[[str], Bundle], tiny_bundle: Path, calibration: CalibrationResult
) -> None:
    source, bundle = Bundle.open(tiny_bundle), make("int8")
    manifest = Bundle.open(bundle.path).manifest  # every hash compared
    assert (manifest.recipe, manifest.precision) == ("int8", "int8")
    assert manifest.smoothed is True
    assert (manifest.calibration_sha256, manifest.calibration_seed) == (calibration.sha256, calibration.seed)
    assert manifest.source == source.manifest.source
    for stage in Stage:
        entry = manifest.stages[str(stage)]
        if stage in STEPPED:
            assert entry.precision == "int8"
            assert 0 < entry.parity[0].rel_l2 <= entry.parity[0].limit
            assert len(entry.parity[0].points) == 2
        else:
            assert entry == source.manifest.stages[str(stage)]
            assert bundle.digest(stage) == source.digest(stage)


@pytest.mark.parametrize(("name", "most"), [("int8", 0.45), ("int8-weights", 0.45), ("int4-weights", 0.35)])
def test_the_transformers_shrink(make: Callable[[str], Bundle], tiny_bundle: Path, name: str, most: float) -> None:
    """The tiny network's tables and positions, which stay, are a fifth of it; of ``mid`` they are 4 %."""

    def size(bundle: Path) -> int:
        return sum((bundle / str(stage) / "weights.bin").stat().st_size for stage in STEPPED)

    assert size(make(name).path) < most * size(tiny_bundle)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("int8", {"QuantizeLinear", "DequantizeLinear", "MatMul"}),
        ("int8-tensorrt", {"QuantizeLinear", "DequantizeLinear", "MatMul"}),
        ("int8-dynamic", {"DynamicQuantizeLinear", "MatMulInteger"}),
        ("int8-weights", {"MatMulNBits"}),
    ],
)
def test_the_output_head_is_kept(make: Callable[[str], Bundle], name: str, kinds: set[str]) -> None:
    bundle = make(name)
    model = ir.load(bundle.path / bundle.stage("restoration").graphs[0].path)
    assert kinds <= {node.op_type for node in model.graph}
    readers = [usage.node.op_type for usage in model.graph.initializers["proj_out.weight"].uses()]
    assert readers == ["MatMul"]


@pytest.mark.slow  # two exports
def test_half_precision_is_what_the_exporter_makes(tmp_path: Path) -> None:
    checkpoint = make_nano(tmp_path / "checkpoint")
    tiles = (Size(64, 64), Size(64, 80))
    exported = [
        export_bundle(checkpoint, tmp_path / p, precision=p, tiles=tiles, overlap=16, steps=(2,), verify="none")
        for p in ("fp32", "fp16")
    ]
    ours = quantize_bundle(exported[0], tmp_path / "ours", recipe="fp16")
    assert ours.manifest.precision == "fp16"
    for name, theirs in exported[1].manifest.stages.items():
        entry = ours.manifest.stages[name]
        for mine, its in zip(entry.graphs, theirs.graphs, strict=True):
            assert (mine.inputs, mine.outputs) == (its.inputs, its.outputs)
        if name != "flow":
            assert entry.precision == "fp16"
            assert all(parity.rel_l2 < HALF_LIMIT for parity in entry.parity)
            sizes = [(folder / name / "weights.bin").stat().st_size for folder in (ours.path, exported[1].path)]
            assert sizes[0] == sizes[1]
    # and one step further: 8-bit weights on top
    both = quantize_bundle(ours, tmp_path / "both", recipe="int8-weights", allow_slower=True)
    assert both.manifest.recipe == "int8-weights"
    assert both.manifest.smoothed is False


def test_quantizing_twice_is_refused(make: Callable[[str], Bundle], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantized already"):
        quantize_bundle(make("int8-weights"), tmp_path / "out", recipe="int8-dynamic")
    with pytest.raises(UsageError, match="is in fp16 already"):
        quantize_bundle(make("fp16"), tmp_path / "out", recipe="fp16")
    assert listing(tmp_path) == set()


def test_a_plan_that_does_nothing_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    recipe = load_recipe("int8-dynamic")
    with pytest.raises(UsageError, match="would quantize nothing"):
        quantize_bundle(tiny_bundle, tmp_path / "out", recipe=recipe, mix={})
    with pytest.raises(UsageError, match="needs a calibration set"):
        quantize_bundle(tiny_bundle, tmp_path / "out", recipe="int8")
    assert listing(tmp_path) == set()


def test_an_engine_past_its_limit_leaves_nothing(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = load_limits_of("int8-dynamic", 1e-6)
    monkeypatch.setattr(acceptance, "load_limits", lambda _precision: limits)
    with pytest.raises(ParityError, match="int8-dynamic stage 'reference'"):
        quantize_bundle(tiny_bundle, tmp_path / "out", recipe="int8-dynamic")
    assert listing(tmp_path) == set()


def load_limits_of(precision: str, rel_l2: float) -> object:
    import msgspec

    from livemoments.limits import load_limits

    found = load_limits(precision)
    return msgspec.structs.replace(found, stage_rel_l2=dict.fromkeys(found.stage_rel_l2, rel_l2))


def test_a_slower_engine_is_refused_unless_it_is_wanted(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "time_stage", lambda *a, **k: StageSpeed("restoration", "256x256", 0.1, 0.2))
    with pytest.raises(CheckFailedError, match=r"2\.00 times as long") as caught:
        quantize(tiny_bundle, tmp_path / "out", recipe="int8-dynamic")
    assert "--allow-slower" in (caught.value.fix or "")
    assert listing(tmp_path) == set()
    found = quantize(tiny_bundle, tmp_path / "out", recipe="int8-dynamic", allow_slower=True)
    assert found.speeds[0].ratio == 0.5
    assert found.layers == {"int8-dynamic": 78, "keep": 1}


def test_equal_speed_passes() -> None:
    recipe = load_recipe("int8")
    refuse_slower([StageSpeed("reference", "1x1", 1.0, 1.04)], recipe, allow_slower=False)
    refuse_slower([], recipe, allow_slower=False)
    with pytest.raises(CheckFailedError):
        refuse_slower([StageSpeed("reference", "1x1", 1.0, 1.06)], recipe, allow_slower=False)


class _Changed(Engine):
    """An engine whose velocity is changed."""

    def __init__(self, engine: Engine, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(engine.stage, engine.inputs, engine.outputs)
        self._engine, self._change = engine, change

    def _run(self, inputs, keep):  # type: ignore[no-untyped-def]
        return {name: self._change(np.asarray(value)) for name, value in self._engine.run(inputs).items()}


def _dead(velocity: np.ndarray) -> np.ndarray:
    changed = velocity.copy()
    changed[:, 3] = 0.25
    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_dead, "1 channels are constant"),
        (lambda v: np.clip(v, *np.quantile(v, [0.05, 0.95])), "saturated, 10% of the values"),
        (lambda v: np.full_like(v, np.nan), "NaN or infinity"),
    ],
)
def test_dead_saturated_and_nan_outputs_are_errors(
    tiny_bundle: Path, change: Callable[[np.ndarray], np.ndarray], words: str
) -> None:
    bundle, size = Bundle.open(tiny_bundle, verify_hashes=False), Size(128, 128)
    backend = OrtBackend()
    with backend.open(bundle, Stage.RESTORATION, size) as source, pytest.raises(EngineError, match=words):
        compare_stage(source, _Changed(source, change), SampleInputs(bundle), Stage.RESTORATION, size, "int8")


def test_a_mix_of_actions(tiny_bundle: Path, calibration: CalibrationResult, tmp_path: Path) -> None:
    from livemoments.graphs.linears import find_linears

    graph = ir.load(tiny_bundle / "restoration" / "128x128.onnx")
    cycle = [Action.INT8_STATIC, Action.KEEP, Action.WEIGHT_INT4, Action.INT8_DYNAMIC, Action.WEIGHT_INT8]
    mix = {linear.id: cycle[i % 5] for i, linear in enumerate(find_linears(graph, "restoration"))}
    recipe = load_recipe("int8")
    bundle = quantize_bundle(
        tiny_bundle, tmp_path / "out", recipe=recipe, calibration=calibration, mix=mix, allow_slower=True
    )
    assert bundle.stage("reference").precision == "fp32"
    assert bundle.stage("restoration").parity[0].rel_l2 < bundle.stage("restoration").parity[0].limit


def test_the_command(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["quantize", tiny_bundle, "-o", output, "--recipe", "int4-weights", "--allow-slower"]
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["manifest"]["recipe"] == "int4-weights"
    assert document["quantized"]["layers"] == {"weight-int4": 78, "keep": 1}
    assert [speed["stage"] for speed in document["quantized"]["speeds"]] == ["reference", "restoration"]
    assert_refused(run(*arguments), output, "exists already")
    text = run(*arguments, "--overwrite", "--verify", "none").stdout
    assert "int4-weights" in text
    assert "layers: 78 weight-int4, 1 keep" in text


def test_the_command_refuses_what_it_cannot_use(tiny_bundle: Path, tmp_path: Path) -> None:
    start = ["quantize", tiny_bundle, "-o", tmp_path / "out", "--recipe"]
    assert_refused(run(*start, "int3"), "there is no recipe 'int3'", "int8-weights")
    assert_refused(run(*start, "int8"), "needs a calibration set", "--calibration DIR")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused(run(*start, "int8", "--calibration", empty), empty)
    changed = copy_linked(tiny_bundle, tmp_path / "changed")
    weights = changed / "restoration" / "weights.bin"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert_refused(
        run("quantize", changed, "-o", tmp_path / "out", "--recipe", "int8-dynamic"), "restoration/weights.bin"
    )
    assert not (tmp_path / "out").exists()
