"""Each rewrite against the same arithmetic in numpy, on a graph of two linears that share their input."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from quantize_support import FIRST, POINTS, SECOND, Seen, dequantized, linears_of, run_model, two_linears

from livemoments.errors import BundleError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.graphs.tensors import read_tensor
from livemoments.ort import open_session, session_options
from livemoments.quantize.actions import Action
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.input_ranges import symmetric_scale, unsigned_parameters
from livemoments.quantize.rewrite.round_weights import E4M3_MAX, fp8_channels, int8_channels, quantize_blocks
from livemoments.quantize.rewrite.run import rewrite

pytestmark = pytest.mark.threads

ROWS, K, N = 9, 64, 48
ROUNDING = 2e-5
"""Relative; sums in another order."""


@pytest.fixture
def case() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    arrays = {
        "first": rng.standard_normal((K, N)),
        "second": rng.standard_normal((K, N)),
        "bias": rng.standard_normal(N),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()} | {
        "x": rng.standard_normal((ROWS, K)).astype(np.float32)
    }


def _recipe(action: Action, **settings: object) -> Recipe:
    return Recipe(name="test", summary="", action=action, **settings)  # type: ignore[arg-type]


def _rewritten(case: dict[str, np.ndarray], recipe: Recipe, stats: object = None, half: bool = False) -> ir.Model:
    kind = np.float16 if half else np.float32
    model = two_linears(*(case[name].astype(kind) for name in ("first", "second", "bias")))
    linears = linears_of(model)
    mix = {linear.id: recipe.action for linear in linears}
    assert rewrite(model, linears, mix, recipe, stats)  # type: ignore[arg-type]
    return model


def _seen(low: list[float], high: list[float]) -> dict[LinearId, Seen]:
    seen = Seen(np.array(low), np.array(high), np.ones(K))
    return {LinearId("restoration", weight): seen for weight in (FIRST, SECOND)}


def _assert_close(found: np.ndarray, wanted: np.ndarray, limit: float = ROUNDING) -> None:
    assert np.linalg.norm(found.astype(np.float32) - wanted) <= limit * np.linalg.norm(wanted)


def _kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("step", range(POINTS))
def test_static_uses_the_ranges_of_the_step(case: dict[str, np.ndarray], step: int) -> None:
    low, high = [-1.0, -3.0, -2.0], [1.5, 2.0, 4.0]
    model = _rewritten(case, _recipe(Action.INT8_STATIC, step_ranges=True), _seen(low, high))
    assert _kinds(model).count("QuantizeLinear") == 1  # one for both linears
    y, z = run_model(model, case["x"], step)
    scale, zero = unsigned_parameters(np.float32(low[step : step + 1]), np.float32(high[step : step + 1]))
    x = (np.clip(np.rint(case["x"] / scale) + zero, 0, 255) - zero) * scale
    _assert_close(y, x @ dequantized(int8_channels(case["first"])) + case["bias"])
    _assert_close(z, x @ dequantized(int8_channels(case["second"])))


def test_without_step_ranges_the_union_holds(case: dict[str, np.ndarray]) -> None:
    model = _rewritten(case, _recipe(Action.INT8_STATIC), _seen([-1.0, -3.0, -2.0], [1.5, 2.0, 4.0]))
    scale, zero = unsigned_parameters(np.float32([-3]), np.float32([4]))
    x = (np.clip(np.rint(case["x"] / scale) + zero, 0, 255) - zero) * scale
    _assert_close(run_model(model, case["x"], 1)[1], x @ dequantized(int8_channels(case["second"])))


def test_symmetric_ranges_have_no_zero_point(case: dict[str, np.ndarray]) -> None:
    model = _rewritten(case, _recipe(Action.INT8_STATIC, symmetric=True), _seen([-1.0], [3.0]))
    scale = symmetric_scale(np.float32([-1]), np.float32([3]), 127)
    x = np.clip(np.rint(case["x"] / scale), -128, 127) * scale
    _assert_close(run_model(model, case["x"])[1], x @ dequantized(int8_channels(case["second"])))


def test_a_point_without_data_gets_the_range_of_the_others(case: dict[str, np.ndarray]) -> None:
    recipe = _recipe(Action.INT8_STATIC, step_ranges=True)
    found = _rewritten(case, recipe, _seen([-3.0, np.nan, -1.0], [2.0, np.nan, 4.0]))
    wanted = _rewritten(case, _recipe(Action.INT8_STATIC), _seen([-3.0], [4.0]))
    np.testing.assert_array_equal(run_model(found, case["x"], 1)[0], run_model(wanted, case["x"])[0])


def test_dynamic_measures_the_range(case: dict[str, np.ndarray]) -> None:
    model = _rewritten(case, _recipe(Action.INT8_DYNAMIC))
    assert _kinds(model).count("DynamicQuantizeLinear") == 1
    x = case["x"]
    scale, zero = unsigned_parameters(x.min().reshape(1), x.max().reshape(1))
    rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    y, z = run_model(model, x)
    _assert_close(y, rounded @ dequantized(int8_channels(case["first"])) + case["bias"])
    _assert_close(z, rounded @ dequantized(int8_channels(case["second"])))


@pytest.mark.parametrize(("action", "bits"), [(Action.WEIGHT_INT8, 8), (Action.WEIGHT_INT4, 4)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weight_only(case: dict[str, np.ndarray], action: Action, bits: int, symmetric: bool) -> None:
    model = _rewritten(case, _recipe(action, symmetric=symmetric, method="hqq"))
    weights = [
        dequantized(quantize_blocks(case[name], bits=bits, block_size=32, symmetric=symmetric, method="hqq"))
        for name in ("first", "second")
    ]
    y, z = run_model(model, case["x"])
    _assert_close(y, case["x"] @ weights[0] + case["bias"])
    _assert_close(z, case["x"] @ weights[1])


def test_fp8(case: dict[str, np.ndarray]) -> None:
    model = _rewritten(case, _recipe(Action.FP8), _seen([-2.0, -4.0, -1.0], [3.0, 1.0, 1.0]))
    scale = np.float32(4 / E4M3_MAX)
    x = np.clip(case["x"] / scale, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    y, z = run_model(model, case["x"])
    _assert_close(y, x @ dequantized(fp8_channels(case["first"])) + case["bias"])
    _assert_close(z, x @ dequantized(fp8_channels(case["second"])))


def test_graphs_have_no_palettes(case: dict[str, np.ndarray]) -> None:
    with pytest.raises(UsageError, match="no palettes"):
        _rewritten(case, _recipe(Action.PALETTE), _seen([-4.0], [4.0]))


@pytest.mark.parametrize("action", [a for a in Action if a not in (Action.KEEP, Action.PALETTE)])
def test_a_half_precision_graph_stays_in_half_precision(case: dict[str, np.ndarray], action: Action) -> None:
    model = _rewritten(case, _recipe(action), _seen([-4.0], [4.0]), half=True)
    y, z = run_model(model, case["x"].astype(np.float16))
    assert y.dtype == z.dtype == np.float16
    coarse = 0.15 if action is Action.WEIGHT_INT4 else 0.06
    _assert_close(y, case["x"] @ case["first"] + case["bias"], coarse)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("action", [Action.INT8_STATIC, Action.INT8_DYNAMIC])
def test_onnxruntime_makes_integer_products_of_it(
    case: dict[str, np.ndarray], action: Action, half: bool, tmp_path: Path
) -> None:
    """Not dequantized weights and float products, which would be slower than before and need more memory."""
    model = _rewritten(case, _recipe(action, step_ranges=True), _seen([-4.0] * POINTS, [4.0] * POINTS), half=half)
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    open_session(ir.to_proto(model).SerializeToString(), options)
    kinds = _kinds(ir.load(tmp_path / "optimized.onnx"))
    # of a product and a bias in two dimensions, as here and nowhere in a transformer, it may make a Gemm
    assert sum("MatMulInteger" in kind or kind == "DynamicQuantizeMatMul" for kind in kinds) == 2 - kinds.count("Gemm")
    assert "MatMul" not in kinds


def test_the_plan_chooses_among_linears(case: dict[str, np.ndarray]) -> None:
    model = two_linears(case["first"], case["second"], case["bias"])
    linears = linears_of(model)
    mix = {linears[0].id: Action.WEIGHT_INT4, linears[1].id: Action.KEEP}
    rewrite(model, linears, mix, _recipe(Action.WEIGHT_INT8))
    assert sorted(_kinds(model)) == ["Add", "MatMul", "MatMulNBits"]
    np.testing.assert_allclose(run_model(model, case["x"])[1], case["x"] @ case["second"], rtol=1e-4, atol=1e-4)


def test_nothing_to_do_changes_nothing(case: dict[str, np.ndarray]) -> None:
    model = two_linears(case["first"], case["second"], case["bias"])
    assert not rewrite(model, linears_of(model), {}, _recipe(Action.INT8_STATIC))
    assert _kinds(model) == ["MatMul", "MatMul", "Add"]


@pytest.mark.parametrize("action", [Action.INT8_STATIC, Action.FP8])
def test_a_missing_calibration_is_named(case: dict[str, np.ndarray], action: Action) -> None:
    model = two_linears(case["first"], case["second"], case["bias"])
    linears = linears_of(model)
    mix = {linears[0].id: action}
    with pytest.raises(UsageError, match="needs a calibration"):
        rewrite(model, linears, mix, _recipe(action))
    with pytest.raises(UsageError, match="no range for 'restoration/transformer_blocks"):
        rewrite(model, linears, mix, _recipe(action), {})
    with pytest.raises(UsageError, match="nothing but zeros"):
        rewrite(model, linears, mix, _recipe(action), _seen([0.0], [0.0]))


def test_weights_are_read_from_linked_files_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    values = np.random.default_rng(3).standard_normal((K, N)).astype(np.float16)
    (tmp_path / "stored.bin").write_bytes(b"\0" * 64 + values.tobytes())
    os.link(tmp_path / "stored.bin", folder / "weights.bin")  # as a store that keeps equal files once makes them

    def external(location: str) -> ir.ExternalTensor:
        shape, kind = ir.Shape((K, N)), ir.DataType.FLOAT16
        return ir.ExternalTensor(location, 64, values.nbytes, kind, shape=shape, name="weight", base_dir=folder)

    assert np.array_equal(read_tensor(external("weights.bin")), values)
    with pytest.raises(BundleError, match="outside of its graph's folder"):
        read_tensor(external("../stored.bin"))
    (folder / "short.bin").write_bytes(values.tobytes())
    with pytest.raises(BundleError, match="ends within 'weight'"):
        read_tensor(external("short.bin"))
