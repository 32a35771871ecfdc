"""8-bit attention, and keys and values that pass between the networks in int8."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from calibration_photos import write_photos
from restore_images import difference

from livemoments.bundle import Bundle
from livemoments.distances import relative_l2
from livemoments.errors import UsageError
from livemoments.export.passes.standard_attention import standard_attention
from livemoments.graphs.float_keys_values import FloatKeysValues, keys_values_scales
from livemoments.graphs.operands import find_keys_values, find_operands
from livemoments.graphs.subgraphs import Network
from livemoments.quantize.acceptance import check_source
from livemoments.quantize.calibrate.photos import read_set
from livemoments.quantize.calibrate.result import CalibrationResult
from livemoments.quantize.calibrate.run import Counted, calibrate
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.quantize.recipes import load_recipe
from livemoments.quantize.rewrite.attention import quantize_keys_values, quantize_operands
from livemoments.runtime import restore
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.keys_values.codecs import KV_DTYPES, codec_for, find_codec
from livemoments.stage_inputs import draw_input
from livemoments.types import Size, Stage

pytestmark = pytest.mark.threads

TILE = Size(128, 128)
TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)
HALF_A_STEP = 0.51
"""Keys and values in int8 lie this near to what the network computed, in steps of their channel; a few may be farther,
where another order of sums moved an input of the network's own 8-bit products by one."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), ("a",))


@pytest.fixture(scope="module")
def calibration(tiny_bundle: Path, photos: Path) -> CalibrationResult:
    recipe = load_recipe("int8-tensorrt")
    return calibrate(tiny_bundle, photos, flow="dis", what=Counted(operands=True), percentile=recipe.percentile)


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Path, calibration: CalibrationResult, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("quantized") / "bundle"
    return quantize_bundle(tiny_bundle, place, recipe="int8-tensorrt", calibration=calibration)


def loaded(bundle: Bundle, stage: Stage) -> ir.Model:
    return ir.load(bundle.path / bundle.graph(stage, TILE).path)


def test_calibration_sees_operands_only_where_they_are_asked_for(
    tiny_bundle: Path, calibration: CalibrationResult
) -> None:
    bundle = Bundle.open(tiny_bundle, verify_hashes=False)
    for stage in TRANSFORMERS:
        operands = find_operands(loaded(bundle, stage), str(stage))
        assert len(operands) == 3 * sum(node.op_type == "MultiHeadAttention" for node in loaded(bundle, stage).graph)
        assert {operand.head_dim for operand in operands} == {bundle.manifest.model.head_dim}
        for operand in operands:
            assert calibration.stats[operand.id].channel_absmax.shape == (operand.width,)
    between = find_keys_values(loaded(bundle, Stage.RESTORATION), "restoration")
    assert len(between) == 2 * bundle.manifest.model.num_blocks
    assert {each.id for each in between} <= set(calibration.stats)


def test_keys_and_values_are_int8_in_both_networks_with_the_same_scales(quantized: Bundle) -> None:
    reference, restoration = (quantized.graph(stage, TILE) for stage in TRANSFORMERS)
    narrow = [spec for spec in reference.outputs if spec.dtype == "int8"]
    assert narrow == list(reference.outputs)
    assert narrow == [spec for spec in restoration.inputs if spec.dtype == "int8"]
    scales = [keys_values_scales(quantized, stage, TILE) for stage in TRANSFORMERS]
    for name, scale in scales[0].items():
        np.testing.assert_array_equal(scale, scales[1][name])
        assert len(np.unique(scale)) > len(scale) / 2  # a channel's own


def test_the_floats_behind_them_are_the_networks_own(tiny_bundle: Path, quantized: Bundle) -> None:
    rng = np.random.default_rng()
    spec = quantized.graph(Stage.REFERENCE, TILE).inputs[0]
    inputs = {spec.name: draw_input(spec, rng), "step": np.array(1, np.int64)}
    source = Bundle.open(tiny_bundle, verify_hashes=False)
    with OrtBackend().open(source, Stage.REFERENCE, TILE) as engine:
        wanted = engine.run(engine.cast(inputs))
    with FloatKeysValues(OrtBackend()).open(quantized, Stage.REFERENCE, TILE) as engine:
        found = engine.run(engine.cast(inputs))
    with OrtBackend().open(quantized, Stage.REFERENCE, TILE) as engine:
        codes = engine.run(engine.cast(inputs))
    for name, array in found.items():
        assert codes[name].dtype == np.int8
        assert 0 < relative_l2(np.asarray(array), np.asarray(wanted[name])) < 0.1
    # a piece of the graph gives the floats before they are rounded
    network = Network(quantized.path / quantized.graph(Stage.REFERENCE, TILE).path)
    with network.cut(["reference_k.0"], []) as piece:
        exact = piece.run(inputs)["reference_k.0"]
    assert exact.dtype == np.float32
    scale = keys_values_scales(quantized, Stage.REFERENCE, TILE)["reference_k.0"]
    off = np.abs(np.asarray(found["reference_k.0"]) - exact) / scale
    inside = np.abs(np.asarray(codes["reference_k.0"]).astype(int)) < 127  # noise has other ranges than photographs
    assert inside.mean() > 0.9
    assert np.quantile(off[inside], 0.999) < HALF_A_STEP
    assert off[inside].max() > HALF_A_STEP / 2


@pytest.mark.parametrize("policy", ["per-step", "phase-split"])
def test_a_photo_restored_through_int8_keys_and_values(
    tiny_bundle: Path, quantized: Bundle, photos: Path, policy: str
) -> None:
    (item,) = read_set(photos)
    images = [
        restore(bundle, item.frame, item.photo, item.photo_frame, pad_small=True, flow="dis", reference=policy).image
        for bundle in (Bundle.open(tiny_bundle), quantized)
    ]
    assert 0 < difference(*images) <= 16
    assert images[0].std() > 5


def test_what_is_narrow_already_is_stored_as_it_is() -> None:
    codes = np.random.default_rng().integers(-128, 128, (1, 70, 8)).astype(np.int8)
    for name in KV_DTYPES:
        codec = codec_for(find_codec(name), codes.dtype)
        stored = codec.encode(codes)
        np.testing.assert_array_equal(codec.decode(stored, codes.dtype), codes)
        assert stored.nbytes == codec.stored_bytes(codes.shape, codes.dtype) == codes.nbytes
        assert codec_for(find_codec(name), np.dtype(np.float16)).name == name


@pytest.mark.parametrize("fp8", [False, True])
def test_pairs_stand_directly_in_front_of_the_standard_attention(
    tiny_bundle: Path, calibration: CalibrationResult, fp8: bool
) -> None:
    model = loaded(Bundle.open(tiny_bundle, verify_hashes=False), Stage.RESTORATION)
    count = quantize_operands(model, Stage.RESTORATION, calibration.stats, fp8=fp8)
    standard_attention(model)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    assert len(attentions) == count > 0
    kind = ir.DataType.FLOAT8E4M3FN if fp8 else ir.DataType.INT8
    for node in attentions:
        for value in node.inputs:
            wide = value.producer()  # type: ignore[union-attr]
            assert wide.op_type == "DequantizeLinear"
            narrow = wide.inputs[0].producer()
            assert (narrow.op_type, narrow.outputs[0].dtype) == ("QuantizeLinear", kind)
            assert narrow.inputs[0].producer().op_type == "Transpose"
            assert np.asarray(ir.convenience.get_const_tensor(narrow.inputs[1]).numpy()).shape == ()
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph) == 3 * count  # the old pairs are gone


def test_narrow_heads_and_missing_ranges(tiny_bundle: Path, calibration: CalibrationResult) -> None:
    model = loaded(Bundle.open(tiny_bundle, verify_hashes=False), Stage.RESTORATION)
    for node in model.graph:
        if node.op_type == "MultiHeadAttention":
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", node.inputs[0].shape[-1] // 8)  # type: ignore[union-attr,index,operator]
    assert quantize_operands(model, Stage.RESTORATION, calibration.stats) == 0
    without = {name: stats for name, stats in calibration.stats.items() if not name.weight.startswith("reference_")}
    with pytest.raises(UsageError, match=r"no range for 'reference/reference_k\.0'"):
        quantize_keys_values(model, Stage.RESTORATION, without)


def test_keys_and_values_in_one_tensor_are_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify_hashes=False)
    stacked = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, kv_layout="stacked"))
    with pytest.raises(UsageError, match="as one tensor") as caught:
        check_source(stacked, load_recipe("fp8"))
    assert "--kv-layout per-block" in (caught.value.fix or "")
    check_source(stacked, load_recipe("int8"))
    check_source(bundle, load_recipe("fp8"))
