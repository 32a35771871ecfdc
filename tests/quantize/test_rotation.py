"""Rotations: the same function, and far better int8 where outliers change their places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from quantize_support import FIRST, SECOND, Seen, linears_of, run_model, two_linears

from livemoments.bundle import Bundle
from livemoments.distances import relative_l2, sqnr_db
from livemoments.errors import UsageError
from livemoments.graphs.linears import LinearId
from livemoments.quantize.actions import Action
from livemoments.quantize.calibrate.result import CalibrationResult
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.round_weights import int8_channels
from livemoments.quantize.rewrite.run import rewrite
from livemoments.quantize.rotation import hadamard, rotate, rotation_block

pytestmark = pytest.mark.threads

ROWS, K, N = 384, 192, 48
OUTLIER = 60.0
"""In one channel of every token, another one in each, among values of standard deviation 1."""
LEAST_GAIN_DB = 8.0
"""Of rotating where there are such outliers; the weights' own rounding bounds it. 11 dB were measured."""


def _recipe(rotation: int, **settings: object) -> Recipe:
    return Recipe(name="test", summary="", action=Action.INT8_STATIC, symmetric=True, rotation=rotation, **settings)  # type: ignore[arg-type]


def _planted(rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((ROWS, K)).astype(np.float32)
    x[np.arange(ROWS), np.arange(ROWS) % K] = OUTLIER
    return x


def _quantized(x: np.ndarray, weights: list[np.ndarray], rotation: int) -> tuple[ir.Model, list[np.ndarray]]:
    model = two_linears(weights[0], weights[1], np.zeros(N, np.float32))
    linears, recipe = linears_of(model), _recipe(rotation)
    seen = rotate(x, rotation_block(linears[0].id, K, rotation))
    stats = {
        LinearId("restoration", name): Seen(np.array([seen.min()]), np.array([seen.max()]), np.ones(K))
        for name in (FIRST, SECOND)
    }
    assert rewrite(model, linears, {linear.id: recipe.action for linear in linears}, recipe, stats)  # type: ignore[arg-type]
    return model, run_model(model, x)


@pytest.mark.parametrize("block", [1, 2, 16, 64])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_rotation_is_its_own_inverse_and_keeps_lengths(block: int, axis: int) -> None:
    x = np.random.default_rng().standard_normal((128, 64))
    turned = rotate(x, block, axis)
    np.testing.assert_allclose(rotate(turned, block, axis), x, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=axis), np.linalg.norm(x, axis=axis), rtol=1e-12)
    if block > 1:
        assert relative_l2(turned, x) > 0.1


def test_a_matrix_by_hand_and_exact_in_half_precision() -> None:
    np.testing.assert_allclose(hadamard(2) * np.sqrt(2), [[1, 1], [1, -1]])
    for size in (16, 64, 256):
        np.testing.assert_array_equal(hadamard(size).astype(np.float16).astype(np.float64), hadamard(size))


def test_blocks_divide_the_width_and_operands_are_left() -> None:
    linear = LinearId("restoration", "transformer_blocks.0.ff.net.2.weight")
    assert [rotation_block(linear, width, 64) for width in (1536, 512, 96, 7)] == [64, 64, 32, 1]
    assert rotation_block(linear, 512, 0) == 1
    for name in ("attention.3.value", "reference_v.0", "reference_k.11"):
        assert rotation_block(LinearId("reference", name), 512, 64) == 1


def test_rotated_products_are_those_of_the_rotated_weights() -> None:
    rng = np.random.default_rng()
    weights = [rng.standard_normal((K, N)).astype(np.float32) for _ in range(2)]
    x = rng.standard_normal((ROWS, K)).astype(np.float32)
    model, found = _quantized(x, weights, 64)
    turned = rotate(x, 64)
    scale = np.abs(turned).max() / np.float32(127)
    codes = np.clip(np.rint(turned / scale), -128, 127) * scale
    for product, weight in zip(found, weights, strict=True):
        stored = int8_channels(rotate(weight, 64, axis=0))
        # a code at a tie may go either way
        assert relative_l2(product, codes @ (stored.values * stored.scale)) < 1e-3
        assert relative_l2(product, x @ weight) < 0.03
    assert sum(node.op_type == "MatMul" for node in model.graph) == 3  # one rotation for both linears


def test_rotation_helps_where_outliers_change_their_places() -> None:
    """Every channel has one somewhere, so that a scale per channel (SmoothQuant's) can change nothing."""
    rng = np.random.default_rng()
    weights = [rng.standard_normal((K, N)).astype(np.float32) for _ in range(2)]
    x = _planted(rng)
    np.testing.assert_array_equal(np.abs(x).max(axis=0), OUTLIER)
    plain, rotated = (
        min(sqnr_db(found, x @ weight) for found, weight in zip(_quantized(x, weights, most)[1], weights, strict=True))
        for most in (0, 64)
    )
    assert rotated > plain + LEAST_GAIN_DB, (plain, rotated)


def test_rotation_is_no_worse_without_outliers() -> None:
    rng = np.random.default_rng()
    weights = [rng.standard_normal((K, N)).astype(np.float32) for _ in range(2)]
    x = rng.standard_normal((ROWS, K)).astype(np.float32)
    plain, rotated = (sqnr_db(_quantized(x, weights, most)[1][0], x @ weights[0]) for most in (0, 64))
    assert rotated > plain - 1.5, (plain, rotated)


def test_a_calibration_without_the_rotation_is_refused(tiny_bundle: Path) -> None:
    schedule = Bundle.open(tiny_bundle, verify_hashes=False).manifest.schedule.points
    plain = CalibrationResult({}, 1, 1, "0" * 64, 0, schedule=schedule)
    bundle = Bundle.open(tiny_bundle, verify_hashes=False)
    plain.check_fits(bundle)
    with pytest.raises(UsageError, match="not rotated, and the recipe wants them in blocks of 64"):
        plain.check_fits(bundle, 64)
    turned = CalibrationResult({}, 1, 1, "0" * 64, 0, schedule=schedule, rotation=64)
    turned.check_fits(bundle, 64)
    with pytest.raises(UsageError, match="rotated in blocks of 64, and the recipe does not rotate"):
        turned.check_fits(bundle)


def test_a_rotated_calibration_says_so_in_its_file(tmp_path: Path) -> None:
    CalibrationResult({}, 1, 1, "0" * 64, 0, rotation=16).save(tmp_path / "own")
    assert CalibrationResult.load(tmp_path / "own").rotation == 16
    CalibrationResult({}, 1, 1, "0" * 64, 0).save(tmp_path / "plain")
    assert CalibrationResult.load(tmp_path / "plain").rotation == 0
