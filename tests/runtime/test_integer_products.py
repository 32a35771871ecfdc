"""int8 is exact on every processor: the option that makes it so, the check that would notice, and nothing around it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest
from places import ROOT

from livemoments.graphs.subgraphs import Network
from livemoments.ort import EXACT_INTEGERS, THREADS_VARIABLE, open_session, session_options
from livemoments.validate.ladder.integer_products import _matmul_integer, check_integer_products, multiply

pytestmark = pytest.mark.threads


def saturating(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What x86 without VNNI computes: neighbouring products added in 16 bits (vpmaddubsw)."""
    pairs = left.astype(np.int32)[:, :, None] * right.astype(np.int32)[None]
    return np.clip(pairs[:, ::2] + pairs[:, 1::2], -(1 << 15), (1 << 15) - 1).sum(axis=1).astype(np.int32)


def has_vnni() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return not cpuinfo.is_file() or any(name in cpuinfo.read_text() for name in ("avx512_vnni", "avx_vnni", "asimd"))


def test_integer_products_are_exact_here() -> None:
    check = check_integer_products()
    assert (check.status, check.value, check.limit) == ("pass", 0.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_products_that_saturate_are_noticed(seed: int) -> None:
    check = check_integer_products(saturating, seed)
    assert check.status == "fail"
    assert check.value is not None
    assert check.value > 1000
    assert "not exact" in check.detail


@pytest.mark.skipif(has_vnni(), reason="this processor's 8-bit products do not saturate")
def test_without_the_option_they_saturate() -> None:
    plain = session_options()
    plain.add_session_config_entry(EXACT_INTEGERS, "0")
    check = check_integer_products(lambda left, right: multiply(left, right, plain))
    assert check.status == "fail"


def test_every_session_begins_with_the_option() -> None:
    assert session_options().get_session_config_entry(EXACT_INTEGERS) == "1"
    assert session_options(threads=3).intra_op_num_threads == 3


@pytest.mark.parametrize(
    ("said", "threads"), [("2", 2), ("3,1", 3), (" 4 ", 4), ("0", 0), ("", 0), ("many", 0), ("-1", 0), (None, 0)]
)
def test_the_environment_limits_threads(monkeypatch: pytest.MonkeyPatch, said: str | None, threads: int) -> None:
    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(THREADS_VARIABLE, said)
    assert session_options().intra_op_num_threads == threads  # 0: onnxruntime's choice
    assert session_options(threads=5).intra_op_num_threads == 5


def test_the_graph_multiplies_what_it_is_given() -> None:
    rng = np.random.default_rng(5)
    left = rng.integers(0, 256, (3, 10), dtype=np.uint8)
    right = rng.integers(-128, 128, (10, 7)).astype(np.int8)
    found = open_session(_matmul_integer(right, 3)).run(None, {"left": left})[0]
    np.testing.assert_array_equal(found, left.astype(int) @ right.astype(int))


def test_one_place_opens_sessions() -> None:
    """A session made elsewhere would lack the option, and be wrong on some processors only."""
    makers = ("InferenceSession", "SessionOptions")
    found = []
    for folder in ("src", "runtime", "reference", "export", "quantize", "validate", "profiles", "benchmarks", "tools"):
        for file in (ROOT / folder).rglob("*.py"):
            calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
            if any(isinstance(call.func, ast.Attribute) and call.func.attr in makers for call in calls):
                found.append(file.relative_to(ROOT).as_posix())
    assert found == ["src/livemoments/ort.py"]


def test_a_part_of_a_graph_may_show_its_dequantized_weights(tmp_path: Path) -> None:
    """Where one dequantization has several readers, onnxruntime refuses the graph with the option: each has its own."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (16, 8), np.int8)
    scale = np.full(8, 0.01, np.float32)
    constants = {
        "x.scale": np.float32(0.02),
        "x.zero": np.uint8(128),
        "w": weight,
        "w.scale": scale,
        "w.zero": np.zeros(8, np.int8),
    }
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "x.scale", "x.zero"], ["x.codes"], name="quantize"),
        onnx.helper.make_node("DequantizeLinear", ["x.codes", "x.scale", "x.zero"], ["x.back"], name="back"),
        onnx.helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.back"], axis=1, name="weight"),
        onnx.helper.make_node("MatMul", ["x.back", "w.back"], ["y"], name="product"),
    ]
    floats = onnx.TensorProto.FLOAT
    shapes = {"x": [2, 16], "x.back": [2, 16], "w.back": [16, 8], "y": [2, 8]}
    info = {name: onnx.helper.make_tensor_value_info(name, floats, shape) for name, shape in shapes.items()}
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info["x"]],
        [info["y"]],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        value_info=[info["x.back"], info["w.back"]],
    )
    file = tmp_path / "g.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), file)
    x = rng.standard_normal((2, 16), np.float32)
    want = weight.astype(np.float32) * scale
    back = (np.clip(np.rint(x / np.float32(0.02)) + 128, 0, 255) - 128) * np.float32(0.02)
    network = Network(file)
    for piece in (network.cut(["w.back", "y"], []), network.cut_apart(["w.back", "y"], [])):
        found = piece.run({"x": x})
        assert np.allclose(found["w.back"], want, atol=1e-6)
        assert np.allclose(found["y"], back @ want, atol=1e-4)
