"""Core ML packages compressed: weights against the formulas, what the guard catches, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from cli_support import run as cli
from coreml_programs import changed, ct, mb, save

from livemoments.checkpoints import trained_bundle
from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.package import Package
from livemoments.coreml.program import Function
from livemoments.errors import EngineError, FileError, MissingExtraError, UsageError
from livemoments.export.coreml.convert import merge
from livemoments.quantize.packages.check import check_compressed
from livemoments.quantize.packages.compress import Target
from livemoments.quantize.packages.linears import find_linears
from livemoments.quantize.packages.palettes import find_palette
from livemoments.quantize.packages.worker import Job, run
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.quantize.recipes import Recipe, load_recipe, names_for
from livemoments.quantize.search.sensitivity import SensitivityOptions
from livemoments.recipe_names import RECIPES

ROWS, FEATURES, OUTPUTS = 5, 64, 48
INPUT_SCALE = 0.03125
FORMULA_REL_L2 = 1e-6
"""Float64 against numpy; what remains is the scales' rounding to the program's float32."""
NAMED = ("p_network_blocks_0_first_weight", "p_network_blocks_0_second_weight")


@pytest.fixture(name="weights", scope="module")
def fixture_weights() -> list[np.ndarray]:
    rng = np.random.default_rng()
    spread = np.exp(rng.normal(size=(OUTPUTS, 1)))
    return [(rng.normal(size=(OUTPUTS, FEATURES)) * spread).astype(np.float32) for _ in NAMED]


@pytest.fixture(name="x", scope="module")
def fixture_x() -> np.ndarray:
    return np.random.default_rng().normal(size=(1, ROWS, FEATURES)).astype(np.float32)


@pytest.fixture(name="source", scope="module")
def fixture_source(weights: list[np.ndarray], x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two linears that share an input, and a table that stays."""
    return save(body(weights), {"x": x}, tmp_path_factory.mktemp("source") / "source.mlpackage")


def body(weights: list[np.ndarray]) -> Callable[..., Any]:
    table = np.random.default_rng(1).normal(size=(FEATURES,)).astype(np.float32)

    def build(x: Any) -> Any:
        moved = mb.add(x=x, y=mb.const(val=table, name="table"))
        found = [
            mb.linear(x=moved, weight=mb.const(val=weight, name=name))
            for name, weight in zip(NAMED, weights, strict=True)
        ]
        return mb.identity(x=mb.add(x=found[0], y=found[1]), name="y")

    return build


def compressed(source: Path, path: Path, recipe: Recipe | str, *, only: tuple[str, ...] = NAMED) -> Function:
    """The function of the package, compressed and checked."""
    targets = tuple(Target(name, INPUT_SCALE) for name in only)
    functions = dict.fromkeys(Package.open(source).functions, targets)
    answer = run(Job(source=str(source), package=str(path), targets=functions, recipe=load_recipe(recipe)))
    assert answer.package_bytes
    package = Package.open(path)
    return package.functions[package.default]


def by_rows(weight: np.ndarray, top: int) -> np.ndarray:
    scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) / top
    return np.asarray(np.rint(weight / scale) * scale)


def by_blocks(weight: np.ndarray, block: int, top: int) -> np.ndarray:
    return by_rows(weight.reshape(-1, block), top).reshape(weight.shape)


FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "int8-weights-coreml": lambda weight: by_rows(weight, 127),
    "int8-coreml": lambda weight: by_rows(weight, 127),
    "int4-weights-coreml": lambda weight: by_blocks(weight, 32, 7),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_compressed_package_computes_what_the_formula_says(
    source: Path, weights: list[np.ndarray], x: np.ndarray, tmp_path: Path, name: str
) -> None:
    compressed(source, tmp_path / "small.mlpackage", name)
    moved = x.astype(np.float64) + np.random.default_rng(1).normal(size=(FEATURES,)).astype(np.float32)
    if load_recipe(name).needs_calibration:
        moved = np.clip(np.rint(moved / INPUT_SCALE), -128, 127) * INPUT_SCALE
    want = sum(moved @ FORMULAS[name](weight).T for weight in weights)
    got = Interpreter(Package.open(tmp_path / "small.mlpackage"), precision="float64").run({"x": x})["y"]
    assert np.linalg.norm(got - want) <= FORMULA_REL_L2 * np.linalg.norm(want)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("palette")])
def test_a_palette_has_as_many_values_as_its_bits_say(source: Path, x: np.ndarray, tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    function = compressed(source, tmp_path / "small.mlpackage", name)
    seen: dict[str, np.ndarray] = {}
    interpreter = Interpreter(Package.open(tmp_path / "small.mlpackage"), function.name)
    interpreter.run({"x": x}, observe=lambda op, _, value: seen.update({op.kind: value.numpy()}))
    groups = seen["constexpr_lut_to_dense"].reshape(-1, (recipe.group_rows or OUTPUTS) * FEATURES)
    assert all(16 < len(np.unique(group)) + 1 <= 2**recipe.bits + 1 for group in groups)


def test_a_layer_that_is_kept_stays(source: Path, tmp_path: Path) -> None:
    function = compressed(source, tmp_path / "small.mlpackage", "palette6-coreml", only=NAMED[:1])
    assert [linear.constant for linear in find_linears(function, "reference")] == [NAMED[1]]


def test_functions_of_several_sizes_share_what_they_shared(
    weights: list[np.ndarray], x: np.ndarray, tmp_path: Path
) -> None:
    wide = np.concatenate([x, x], axis=1)
    for name, example in (("one", x), ("two", wide)):
        save(body(weights), {"x": example}, tmp_path / f"{name}.mlpackage")
    merge({f"size_{name}": str(tmp_path / f"{name}.mlpackage") for name in ("one", "two")}, tmp_path / "all.mlpackage")
    compressed(tmp_path / "all.mlpackage", tmp_path / "small.mlpackage", "int8-weights-coreml")
    package = Package.open(tmp_path / "small.mlpackage")
    assert set(package.functions) == {"size_one", "size_two"}
    rows = Interpreter(package, "size_one").run({"x": x})["y"]
    both = Interpreter(package, "size_two").run({"x": wide})["y"]
    np.testing.assert_allclose(both, np.concatenate([rows, rows], axis=1), rtol=1e-5, atol=1e-5)
    stored = (tmp_path / "small.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert stored < 1.2 * len(NAMED) * OUTPUTS * (FEATURES + 4)


# What the guard is for


def test_a_weight_that_coremltools_leaves_out_is_named(source: Path, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(load_recipe("int4-weights-coreml"), block_size=128)  # 64 inputs are no such blocks
    with pytest.raises(EngineError, match=f"'{NAMED[0]}' was left as it is"):
        compressed(source, tmp_path / "small.mlpackage", odd)


def test_constants_that_coremltools_corrupts_are_named(source: Path, tmp_path: Path) -> None:
    """Scales per channel beside palettes divide a weight in place, and then leave it out where groups do not fit."""
    optimize = ct.optimize.coreml
    odd = {"granularity": "per_grouped_channel", "group_size": 7, "channel_axis": 0}
    how = optimize.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0, enable_per_channel_scale=True, **odd)
    model = ct.models.MLModel(str(source), skip_model_load=True)
    config = optimize.OptimizationConfig(op_name_configs={NAMED[0]: how})
    optimize.palettize_weights(model, config).save(str(tmp_path / "small.mlpackage"))
    before, after = (Package.open(path).functions["main"] for path in (source, tmp_path / "small.mlpackage"))
    with pytest.raises(EngineError, match=f"the constant '{NAMED[0]}', which was to stay as it is, has other values"):
        check_compressed(before, after, (), "small.mlpackage")


def test_another_operator_is_named(source: Path, tmp_path: Path) -> None:
    compressed(source, tmp_path / "small.mlpackage", "int8-weights-coreml")

    def subtract(block: Any) -> None:
        next(op for op in block.operations if op.type == "add").type = "sub"

    place = changed(tmp_path / "small.mlpackage", tmp_path / "changed.mlpackage", subtract)
    before, after = (Package.open(path).functions["main"] for path in (source, place))
    with pytest.raises(EngineError, match=r"other operators than the source \(add, sub\)"):
        check_compressed(before, after, NAMED, "changed.mlpackage")


def test_inputs_that_are_others_are_named(
    source: Path, x: np.ndarray, weights: list[np.ndarray], tmp_path: Path
) -> None:
    other = save(body(weights), {"x": np.concatenate([x, x], axis=1)}, tmp_path / "other.mlpackage")
    before, after = (Package.open(path).functions["main"] for path in (source, other))
    with pytest.raises(EngineError, match="its inputs are others than the source's"):
        check_compressed(before, after, (), "other.mlpackage")


# Palettes


def squared_error(values: np.ndarray, table: np.ndarray, indices: np.ndarray) -> float:
    return float(((table[indices].astype(np.float64) - values.reshape(-1)) ** 2).sum())


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("draw", ["normal", "laplace", "standard_cauchy"])
def test_a_palette_is_better_than_quantiles_and_than_a_grid(bits: int, draw: str) -> None:
    rng = np.random.default_rng()
    values = np.clip(getattr(rng, draw)(size=(128, 96)), -40, 40).astype(np.float16)
    table, indices = find_palette(values, bits)
    assert table.dtype == values.dtype
    assert (indices.dtype, indices.shape) == (np.uint8, (values.size,))
    assert (np.diff(table) >= 0).all()
    nearest = np.abs(values.reshape(-1, 1).astype(np.float64) - table.astype(np.float64)).min(axis=1)
    assert squared_error(values, table, indices) == pytest.approx(float((nearest**2).sum()))
    flat = values.astype(np.float64).reshape(-1)
    for other in (
        np.quantile(flat, (np.arange(2**bits) + 0.5) / 2**bits),
        np.linspace(flat.min(), flat.max(), 2**bits),
    ):
        chosen = np.abs(flat[:, None] - other).argmin(axis=1)
        assert squared_error(values, table, indices) < squared_error(values, other, chosen)


def test_few_values_are_kept_as_they_are() -> None:
    values = np.random.default_rng().choice(np.array([-1.5, 0, 0.25, 3], np.float16), size=(16, 8))
    table, indices = find_palette(values, 4)
    assert len(table) == 16
    np.testing.assert_array_equal(table[indices].reshape(values.shape), values)


# What is refused


def test_a_recipe_is_for_graphs_or_for_packages(tmp_path: Path) -> None:
    ended = cli("quantize", trained_bundle(), "-o", tmp_path / "out", "--recipe", "palette6-coreml")
    assert ended.exit_code == 2
    assert "recipe 'palette6-coreml' is not for bundles of --target onnx" in ended.stderr
    assert "use fp16, int8," in ended.stderr
    assert not (tmp_path / "out").exists()
    assert set(names_for("coreml")) | set(names_for("onnx")) == set(RECIPES)
    assert all(name.endswith("-coreml") for name in names_for("coreml"))


def test_a_missing_coremltools_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match="extra 'coreml'"):
        quantize_bundle(trained_bundle(), tmp_path / "out", recipe="palette6-coreml")
    assert not (tmp_path / "out").exists()


def test_layers_of_packages_are_not_tried_one_by_one() -> None:
    with pytest.raises(UsageError, match="compresses Core ML packages"):
        SensitivityOptions(load_recipe("palette6-coreml"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('action = "palette"', "palettes are for Core ML packages"),
        ('action = "palette"\ndevices = ["coreml"]\nbits = 5', "bits must be one of 4, 6, 8"),
        ('action = "palette"\ndevices = ["coreml"]\ngroup_rows = -1', "group_rows must be 0 or more"),
        ('action = "fp8"\ndevices = ["coreml"]', "Core ML packages take"),
        ('action = "int8-static"\ndevices = ["coreml"]\nstep_ranges = true', "Core ML packages take"),
        ('action = "weight-int8"\nblock_size = 0', "block_size must be one of 16"),
    ],
)
def test_a_recipe_of_ones_own_that_packages_cannot_have_is_refused(tmp_path: Path, lines: str, words: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f'name = "own"\nsummary = "own"\n{lines}\n')
    with pytest.raises(FileError, match=words):
        load_recipe(file)
