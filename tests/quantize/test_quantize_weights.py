"""Weights in 8 and 4 bits: error bounds, the packing that onnxruntime reads, HQQ against plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from quantize_support import dequantized

from livemoments.ort import open_session
from livemoments.quantize.rewrite.round_weights import BlockWeights, fp8_channels, int8_channels, quantize_blocks

E4M3_HALF_STEP = 2.0**-4
"""Largest relative rounding error of a normal E4M3 number: half of 2^-3."""


def _weight(rng: np.random.Generator, inputs: int, outputs: int) -> np.ndarray:
    return (rng.standard_normal((inputs, outputs)) * rng.uniform(0.01, 1, outputs)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), inputs=st.integers(1, 70), outputs=st.integers(1, 20))
def test_int8_is_within_half_a_step_of_every_value(seed: int, inputs: int, outputs: int) -> None:
    weight = _weight(np.random.default_rng(seed), inputs, outputs)
    found = int8_channels(weight)
    assert found.values.dtype == np.int8
    assert np.abs(found.values).max() == 127
    assert np.all(np.abs(dequantized(found) - weight) <= found.scale * 0.5001)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_fp8_is_within_half_a_step_of_every_normal_value(seed: int) -> None:
    weight = _weight(np.random.default_rng(seed), 40, 12)
    found = fp8_channels(weight)
    error = np.abs(dequantized(found) - weight)
    assert np.isfinite(dequantized(found)).all()
    assert np.all(error <= np.maximum(np.abs(weight) * E4M3_HALF_STEP * 1.001, found.scale * 2.0**-9))


@pytest.mark.parametrize("quantize", [int8_channels, fp8_channels])
def test_a_channel_of_zeros_stays_zero(quantize: object) -> None:
    weight = np.zeros((8, 3), np.float32)
    weight[:, 1] = 1
    assert callable(quantize)
    np.testing.assert_allclose(dequantized(quantize(weight)), weight, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32]),
    symmetric=st.booleans(),
    inputs=st.integers(1, 100),
)
def test_blocks_are_within_a_step(seed: int, bits: int, block: int, symmetric: bool, inputs: int) -> None:
    weight = _weight(np.random.default_rng(seed), inputs, 7)
    found = quantize_blocks(weight, bits=bits, block_size=block, symmetric=symmetric)
    steps = np.repeat(found.scale, block, axis=1)[:, :inputs].T
    # rounding value and zero point costs up to half a step each
    assert np.all(np.abs(dequantized(found) - weight) <= steps * 1.001)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("inputs", [128, 200, 96])
def test_onnxruntime_reads_the_packing(symmetric: bool, bits: int, block: int, inputs: int) -> None:
    rng = np.random.default_rng(inputs + bits)
    packed = quantize_blocks(_weight(rng, inputs, 24), bits=bits, block_size=block, symmetric=symmetric, method="hqq")
    x = rng.standard_normal((5, inputs)).astype(np.float32)
    wanted = x @ dequantized(packed)
    np.testing.assert_allclose(_matmul_nbits(x, packed, symmetric), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def _matmul_nbits(x: np.ndarray, packed: BlockWeights, symmetric: bool) -> np.ndarray:
    arrays = {"values": packed.values, "scale": packed.scale} | ({} if symmetric else {"zero": packed.zero})
    outputs = packed.scale.shape[0]
    node = helper.make_node(
        "MatMulNBits",
        ["x", *arrays],
        ["y"],
        domain="com.microsoft",
        K=packed.inputs,
        N=outputs,
        bits=packed.bits,
        block_size=packed.block_size,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), outputs])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = open_session(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [32, 128])
def test_hqq_is_never_worse_and_gains_with_four_bits(block: int, symmetric: bool) -> None:
    weight = np.random.default_rng(block).standard_t(4, (256, 96)).astype(np.float32)
    rtn, hqq = (
        quantize_blocks(weight, bits=4, block_size=block, symmetric=symmetric, method=m) for m in ("rtn", "hqq")
    )

    def per_block(found: BlockWeights) -> np.ndarray:
        error = (dequantized(found) - weight).T.reshape(96, -1, block)
        return (error**2).sum(axis=-1)

    assert np.all(per_block(hqq) <= per_block(rtn) * 1.0001)
    assert per_block(hqq).sum() < 0.97 * per_block(rtn).sum()


def test_importance_lowers_the_weighted_error() -> None:
    rng = np.random.default_rng(3)
    weight, importance = _weight(rng, 128, 64), rng.uniform(0, 1, 128) ** 8
    plain, weighted = (
        quantize_blocks(weight, bits=4, block_size=32, method="hqq", importance=each) for each in (None, importance)
    )
    errors = [float((importance[:, None] * (dequantized(q) - weight) ** 2).sum()) for q in (plain, weighted)]
    assert errors[1] < 0.9 * errors[0]


def test_quantizing_twice_gives_the_same_bytes() -> None:
    weight = _weight(np.random.default_rng(1), 130, 50)
    first, second = (quantize_blocks(weight, bits=4, block_size=32, method="hqq") for _ in range(2))
    for name in ("values", "scale", "zero"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
