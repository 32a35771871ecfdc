"""Recipes and mixes: what ships loads, what contradicts is refused, patterns keep what they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import onnx_ir as ir
import pytest
from places import ROOT

from livemoments.bundle import Bundle
from livemoments.errors import FileError, UsageError
from livemoments.graphs.linears import Linear, LinearId, find_linears
from livemoments.limits import load_limits
from livemoments.quantize.actions import Action
from livemoments.quantize.recipes import Recipe, load_recipe, names_for, recipe_mix
from livemoments.recipe_names import RECIPES
from livemoments.types import Stage


@pytest.fixture(scope="module")
def linears(tiny_bundle: Path) -> dict[str, list[Linear]]:
    manifest = Bundle.open(tiny_bundle, verify_hashes=False).manifest
    return {
        name: find_linears(ir.load(tiny_bundle / entry.graphs[0].path), name) for name, entry in manifest.stages.items()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_loads_and_has_limits(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.precision == re.sub("(-(tensorrt|rotated|mixed|coreml))+$", "", name)  # other forms of a precision
    assert recipe.summary
    assert set(load_limits(recipe.precision).stage_rel_l2) == {str(stage) for stage in Stage}


def test_bundles_of_releases_that_did_not_say_what_is_smoothed_are_known_by_their_recipe(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle, verify_hashes=False).manifest
    newer = {"int8-rotated", "int8-tensorrt-mixed", "fp8-mixed"}  # no release without the word had them
    for name in sorted(set(names_for("onnx")) - newer):
        old = msgspec.structs.replace(manifest, recipe=name)
        assert old.may_be_smoothed == (load_recipe(name).smoothquant_alpha is not None), name


def test_no_recipe_file_is_left_out() -> None:
    folder = ROOT / "quantize" / "recipes"
    assert {path.stem for path in folder.iterdir()} == set(RECIPES)


def test_int8_needs_calibration_and_weights_do_not() -> None:
    needs = {name for name in RECIPES if load_recipe(name).needs_calibration}
    for_tensorrt = {"int8-tensorrt", "int8-tensorrt-mixed", "int8-rotated", "fp8", "fp8-mixed"}
    assert needs == {"int8", "int8-coreml"} | for_tensorrt


@pytest.mark.parametrize(
    ("name", "of", "variant"),
    [
        ("int8-tensorrt-mixed", "int8-tensorrt", "int8-tensorrt, attention's outputs and MLP's second linears in fp16"),
        ("fp8-mixed", "fp8", "fp8, the same and the first block in fp16"),
    ],
)
def test_mixed_recipes_keep_what_was_measured_to_hold(name: str, of: str, variant: str) -> None:
    """2 % (int8) and 5 % (fp8) of RestorationNet's velocity at every step of ``mid``: ``eight_bit.py``."""
    record = json.loads((ROOT / "benchmarks" / "results" / "eight-bit-mid.json").read_text())["mid"][variant]
    assert record["holds"]
    assert max(record["velocity_rel_l2"]) <= {"int8-tensorrt": 0.02, "fp8": 0.05}[of]
    mixed, whole = load_recipe(name), load_recipe(of)
    assert list(mixed.keep) == record["kept"]
    same = {"name": name, "summary": mixed.summary, "keep": mixed.keep, "attention": False}
    assert msgspec.structs.replace(whole, **same) == mixed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 1", "not a recipe"),
        ('name = "x"', "missing required field"),
        ('name = "x"\nsummary = ""\naction = "int3"', "int3"),
        ('name = "x"\nsummary = ""\naction = "keep"', "half goes with"),
        ('name = "x"\nsummary = ""\naction = "weight-int4"\nblock_size = 24', "block_size must be one of"),
        ('name = "x"\nsummary = ""\naction = "int8-static"\nsmoothquant_alpha = 1.5', "between 0 and 1"),
        ('name = "x"\nsummary = ""\naction = "int8-static"\npercentile = 5', "percentile"),
        ('name = "x"\nsummary = ""\naction = "fp8"\ncolour = 1', "colour"),
        ('name = "x"\nsummary = ""\naction = "weight-int8"\nattention = true', "go with the actions"),
        ('name = "x"\nsummary = ""\naction = "fp8"\nkeys_values = true\nstages = ["reference"]', "must be both"),
        ('name = "x"\nsummary = ""\naction = "fp8"\nrotation = 48', "rotation must be one of 16, 64, 256"),
        ("name = ", "not a recipe"),
    ],
)
def test_a_malformed_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(FileError, match=words) as caught:
        load_recipe(file)
    assert str(file) in caught.value.message


def test_an_unknown_recipe_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("int2")
    assert all(name in (caught.value.fix or "") for name in RECIPES)
    with pytest.raises(FileError, match="cannot be read"):
        load_recipe(tmp_path / "absent.toml")


def test_an_own_recipe_has_the_limits_of_its_action(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('name = "mine"\nsummary = "x"\naction = "weight-int4"\nblock_size = 128\n')
    recipe = load_recipe(file)
    assert (recipe.name, recipe.precision) == ("mine", "int4-weights")


def test_plans_cover_the_recipes_stages(linears: dict[str, list[Linear]]) -> None:
    everything = [linear for found in linears.values() for linear in found]
    mix = recipe_mix(load_recipe("int8"), everything)
    assert {linear.stage for linear in mix} == {"reference", "restoration"}
    assert mix[LinearId("restoration", "proj_out.weight")] is Action.KEEP
    kept = [linear for linear, action in mix.items() if action is Action.KEEP]
    assert kept == [LinearId("restoration", "proj_out.weight")]
    assert recipe_mix(load_recipe("fp16"), everything) == {}


def test_patterns_keep_what_they_name(linears: dict[str, list[Linear]]) -> None:
    recipe = msgspec.structs.replace(load_recipe("int8"), keep=("transformer_blocks.0.*", "*.ff.net.?.weight"))
    mix = recipe_mix(recipe, linears["restoration"])
    for linear, action in mix.items():
        named = linear.weight.startswith("transformer_blocks.0.") or linear.weight.endswith(".ff.net.2.weight")
        assert (action is Action.KEEP) == named, linear


def test_linears_know_their_norm_and_table(linears: dict[str, list[Linear]]) -> None:
    by_weight = {linear.id.weight: linear for linear in linears["restoration"]}
    query = by_weight["transformer_blocks.1.attn.to_q.weight"]
    assert (query.block, query.kind, query.table) == (1, "attn.to_q", "transformer_blocks.1.norm1.table")
    assert (query.shift_chunk, query.scale_chunk) == (0, 1)
    assert query.norm == query.input_value == by_weight["transformer_blocks.1.attn.to_v.weight"].norm
    inner = by_weight["transformer_blocks.1.ff.net.0.proj.weight"]
    assert (inner.shift_chunk, inner.scale_chunk) == (3, 4)
    assert inner.out_features == 4 * inner.in_features
    assert by_weight["transformer_blocks.1.ff.net.2.weight"].norm is None
    last = by_weight["proj_out.weight"]
    # diffusers' last norm has the scale first
    assert (last.block, last.table, last.scale_chunk, last.shift_chunk) == (None, "norm_out.table", 0, 1)
    motion = linears["motion"][0]
    assert (motion.kind, motion.table) == ("attn.processor.point_proj", None)


def test_layer_names_are_read_back() -> None:
    linear = LinearId("restoration", "transformer_blocks.3.attn.to_q.weight")
    assert LinearId.parse(str(linear)) == linear
    for text in ("", "restoration", "/weight", "restoration/"):
        with pytest.raises(UsageError):
            LinearId.parse(text)


def test_a_recipe_is_data() -> None:
    recipe = load_recipe("int4-weights")
    assert msgspec.convert(msgspec.to_builtins(recipe), Recipe) == recipe
