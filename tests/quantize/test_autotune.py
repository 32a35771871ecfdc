"""Which linears nvidia-modelopt's Autotune keeps in 8 bits, with an invented price list in place of a GPU."""

from __future__ import annotations

import importlib.util
import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import torch
from cli_support import run

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.quantize import autotune
from livemoments.quantize.actions import Action
from livemoments.quantize.autotune import autotuned_mix, check_autotune, tune_block
from livemoments.quantize.options import QuantizeOptions
from livemoments.quantize.recipes import load_recipe

needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="the extra 'modelopt' is not installed ('make modelopt')"
)
FLOAT_MS, SAVED_MS, LOST_MS, PAIR_MS = 100.0, 4.0, 80.0, 0.1
"""One product that is slower in 8 bits outweighs all that are faster: no placement with it is worth its price."""


@pytest.fixture(scope="module")
def source() -> Bundle:
    """As if the small bundle had been exported for TensorRT; its attention is onnxruntime's."""
    opened = Bundle.open(trained_bundle())
    return Bundle(opened.path, msgspec.structs.replace(opened.manifest, target="tensorrt"))


class PriceList:
    """In the place of a GPU: products whose weight's name has a word in it are faster in 8 bits, others are not."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.models: list[int] = []

    def run(self, model: str | bytes, log_file: str | None = None, flush_timing_cache: bool = False) -> float:
        read = onnx.load(model) if isinstance(model, str) else onnx.ModelProto.FromString(model)
        made = {output: node for node in read.graph.node for output in node.output}
        pairs = [node for node in read.graph.node if node.op_type == "DequantizeLinear"]
        self.models.append(len(pairs))
        price = FLOAT_MS + PAIR_MS * len(pairs)
        for node in read.graph.node:
            if node.op_type == "MatMul" and all(name in made and made[name] in pairs for name in node.input):
                weight = made[made[node.input[1]].input[0]].input[0]
                price += -SAVED_MS if self.word in weight else LOST_MS
        return price


@pytest.fixture
def workflows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    _, module = autotune._import_autotune()
    monkeypatch.setattr(module, "init_benchmark_instance", lambda **_: object())
    monkeypatch.setattr(module, "_benchmark_instance", None)
    return module


def test_blocks_hold_every_linear_once_and_equal_ones_are_alike(source: Bundle) -> None:
    recipe = load_recipe("fp8")
    blocks = list(autotune._blocks(source, recipe))
    weights = [(stage, name) for stage, block in blocks for name in block.weights]
    assert len(weights) == len(set(weights))
    from livemoments.quantize.pipeline import _find_linears

    assert set(weights) == {(x.id.stage, x.id.weight) for x in _find_linears(source) if x.id.stage in recipe.stages}
    assert len({(stage, block.structure) for stage, block in blocks}) < len(blocks)
    block = blocks[0][1]
    other = onnx.ModelProto()
    other.CopyFrom(block.model)
    other.graph.node[0].op_type = "Identity"
    assert autotune.Block(other, block.folder, block.weights).structure != block.structure
    assert block.filled().ByteSize() > block.model.ByteSize()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fp16", "does not have"),
        ("int8", "does not have"),
        ("int8-weights", "does not have"),
        ("int8-rotated", "without the rotation"),
    ],
)
def test_recipes_that_have_nothing_to_place(source: Bundle, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_autotune(source, load_recipe(name))


def test_a_bundle_for_onnxruntime_is_refused(tmp_path: Path) -> None:
    result = run("quantize", trained_bundle(), "-o", tmp_path / "new", "--recipe", "fp8", "--autotune")
    assert result.exit_code == 2
    assert "export with --target tensorrt" in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_a_machine_lacks_is_named(source: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"modelopt", "tensorrt"}
    monkeypatch.setattr(autotune.importlib.util, "find_spec", lambda name: name if name in have else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="an NVIDIA GPU"):
        check_autotune(source, load_recipe("fp8"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_autotune(source, load_recipe("fp8"))
    have.remove("tensorrt")
    with pytest.raises(UsageError, match="the TensorRT library"):
        check_autotune(source, load_recipe("fp8"))
    have.remove("modelopt")
    with pytest.raises(MissingExtraError, match="Autotune"):
        check_autotune(source, load_recipe("fp8"))


def test_a_budget_and_autotune_contradict() -> None:
    with pytest.raises(UsageError, match="each choose"):
        QuantizeOptions("fp8", "photos", budget="42dB", autotune=True)


@needs_modelopt
@pytest.mark.slow
def test_the_calls_fit_the_installed_release() -> None:
    _, workflows = autotune._import_autotune()
    inspect.signature(workflows.region_pattern_autotuning_workflow).bind(
        onnx.ModelProto(),
        output_dir=Path("x"),
        num_schemes_per_region=30,
        quant_type="fp8",
        default_dq_dtype="float16",
    )
    inspect.signature(workflows.init_benchmark_instance).bind(timing_cache_file="x")
    run = inspect.signature(workflows.TensorRTPyBenchmark.run)
    assert set(inspect.signature(PriceList.run).parameters) - {"model"} <= set(run.parameters)
    if not torch.cuda.is_available():
        assert workflows.init_benchmark_instance(timing_cache_file="x") is None  # what autotuned_mix asks for


@needs_modelopt
@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8-tensorrt", "fp8"])
def test_only_the_faster_linears_are_quantized(
    source: Bundle, name: str, workflows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autotune looks at random for better placements: it may miss one, but takes none that is slower."""
    before = {path: path.read_bytes() for path in sorted(source.path.rglob("*")) if path.is_file()}
    prices = PriceList(".ff.")
    monkeypatch.setattr(workflows, "_benchmark_instance", prices)
    monkeypatch.setattr(autotune, "SCHEMES", 12)
    random.seed(0)  # what Autotune tries
    recipe = msgspec.structs.replace(load_recipe(name), stages=("restoration",))
    mix = {
        autotune.LinearId(str(stage), weight): recipe.action
        for stage, block in autotune._blocks(source, recipe)
        for weight in block.weights
    }
    tuned = autotuned_mix(source, recipe, mix)
    assert set(tuned) == set(mix)
    narrow = {linear.weight for linear, action in tuned.items() if action is recipe.action}
    assert narrow
    assert all(".ff." in weight for weight in narrow)
    assert set(tuned.values()) == {recipe.action, Action.KEEP}
    assert prices.models[0] == 0  # the block as it is
    assert max(prices.models) > 0
    assert {path: path.read_bytes() for path in sorted(source.path.rglob("*")) if path.is_file()} == before


@needs_modelopt
@pytest.mark.slow
def test_builds_that_fail_end_it(
    source: Bundle, workflows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflows, "benchmark_onnx_model", lambda *_, **__: float("inf"))
    monkeypatch.setattr(autotune, "SCHEMES", 1)
    recipe = load_recipe("fp8")
    _, block = next(autotune._blocks(source, recipe))
    with pytest.raises(EngineError, match="built no engine"):
        tune_block(block, recipe, tmp_path)
    monkeypatch.setattr(workflows, "init_benchmark_instance", lambda **_: None)
    with pytest.raises(EngineError, match="cannot start TensorRT"):
        autotuned_mix(source, recipe, {})
