"""What the rules say of a graph, and that the library itself says the same where it is installed."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from engine_support import needs_rtx
from fake_bundle import make_fake_bundle
from onnx import TensorProto, helper, numpy_helper

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, UsageError
from livemoments.export.passes.name_modules import MODULE
from livemoments.export.tensorrt import worker
from livemoments.export.tensorrt.build import build_engines
from livemoments.export.tensorrt.check import check_target
from livemoments.export.tensorrt.modules import ModuleNames
from livemoments.export.tensorrt.options import DEFAULT_SM, BuildOptions
from livemoments.export.tensorrt.prepare import prepare
from livemoments.export.tensorrt.process import RefusedError, run_job
from livemoments.export.tensorrt.protocol import Done, Failed, Job
from livemoments.export.tensorrt.refusals import find_refusals
from livemoments.tensorrt.library import load_library
from livemoments.types import Size

MODULE_NAME = "transformer_blocks.0.attn.to_q"
WIDTH = 64
SIZE = Size(64, 64)
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    dtype: int = HALF,
    batch: int | str = "batch",
    inputs: Sequence[onnx.ValueInfoProto] = (),
) -> Path:
    for node in nodes:
        node.metadata_props.append(onnx.StringStringEntryProto(key=MODULE, value=MODULE_NAME))
    shape = [batch, WIDTH]
    x, y = (helper.make_tensor_value_info(name, dtype, shape) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x, *inputs], [y], initializers)
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def weight(name: str = "w", dtype: str = "float16", seed: int | None = None) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH))
    return numpy_helper.from_array(values.astype(dtype), name)


def quantized(path: Path, kind: int, zero: int = 0) -> Path:
    """A linear whose input passes through a type of 8 bits or fewer."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    scale = numpy_helper.from_array(np.array(0.1, np.float16), "scale")
    return save(path, nodes, [scale, helper.make_tensor("zero", kind, [], [zero]), weight()])


def one_node(path: Path, operator: str, dtype: str, domain: str = "") -> Path:
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], name="product", domain=domain)]
    return save(path, nodes, [weight(dtype=dtype)])


def refusals(path: Path, sm: Sequence[str] = ("8.6", "8.9", "12.0")) -> list[tuple[str, str, str]]:
    found = find_refusals(prepare(path, SIZE, 1).model, sm)
    return [(one.module, one.operator, one.reason) for one in found]


def job(path: Path, sm: str, output: Path) -> Job:
    return Job(library="rtx", graph=str(path), size=str(SIZE), batch=1, sm=(sm,), output=str(output))


def by_the_library(path: Path, sm: str, output: Path) -> Done:
    """Parsed and built, without asking the rules first."""
    return run_job(job(path, sm, output), "it")


def refused_here(path: Path, output: Path) -> Failed:
    """What the library says in this process, which is quicker than one of its own."""
    with pytest.raises(worker._RefusedError) as raised:
        worker.run(job(path, "8.6", output), worker.Channel(io.BytesIO()))
    return raised.value.failed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "graph.onnx"


def test_a_plain_graph_is_taken(path: Path) -> None:
    assert refusals(one_node(path, "MatMul", "float16")) == []
    assert refusals(quantized(path, TensorProto.INT8)) == []
    assert refusals(quantized(path, TensorProto.FLOAT8E4M3FN), ["8.9", "12.0"]) == []


def test_fp8_below_ada_is_refused_by_module_and_gpu(path: Path) -> None:
    found = refusals(quantized(path, TensorProto.FLOAT8E4M3FN))
    reason = "it works on FLOAT8E4M3FN, which SM 8.6 does not have (from 8.9 on)"
    assert found == [(MODULE_NAME, "QuantizeLinear", reason), (MODULE_NAME, "DequantizeLinear", reason)]
    assert refusals(quantized(path, TensorProto.FLOAT8E4M3FN), ["7.5", "12.0"])[0][2].startswith(
        "it works on FLOAT8E4M3FN, which SM 7.5 does"
    )


@pytest.mark.parametrize("operator", ["MatMul", "Add"])
def test_mixed_types_are_refused(path: Path, operator: str) -> None:
    assert refusals(one_node(path, operator, "float32")) == [
        (MODULE_NAME, operator, "it mixes FLOAT and FLOAT16; networks are typed")
    ]


def test_operators_of_other_domains_are_refused(path: Path) -> None:
    found = refusals(one_node(path, "MatMulNBits", "float16", "com.microsoft"))
    assert found == [
        (
            MODULE_NAME,
            "com.microsoft.MatMulNBits",
            "no standard operator; these libraries take standard ones only",
        )
    ]


def test_types_without_a_place_and_asymmetric_ranges_are_refused(path: Path) -> None:
    assert "its zero point is not 0; only symmetric ranges are taken" in [
        reason for _, _, reason in refusals(quantized(path, TensorProto.INT8, zero=3))
    ]
    for kind, name in ((TensorProto.UINT4, "UINT4"), (TensorProto.INT16, "INT16")):
        assert f"it works on {name}, a type that is not taken" in [
            reason for _, _, reason in refusals(quantized(path, kind))
        ]


def test_a_zero_point_that_is_computed_is_refused_and_a_scale_is_not(path: Path) -> None:
    def gathered(zero_is_constant: bool) -> Path:
        nodes = [
            helper.make_node("Gather", ["scales", "step"], ["scale"], name="scale"),
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dequantize"),
        ]
        scales = numpy_helper.from_array(np.array([0.1, 0.2], np.float16), "scales")
        name = "zero" if zero_is_constant else "zeros"
        zero = helper.make_tensor(name, TensorProto.INT8, [] if zero_is_constant else [2], [0] * (2 - zero_is_constant))
        if not zero_is_constant:
            nodes.insert(0, helper.make_node("Gather", ["zeros", "step"], ["zero"], name="zero"))
        step = helper.make_tensor_value_info("step", TensorProto.INT64, [])
        return save(path, nodes, [scales, zero], inputs=[step])

    assert refusals(gathered(zero_is_constant=True)) == []
    found = refusals(gathered(zero_is_constant=False))
    assert {(module, operator) for module, operator, _ in found} == {
        (MODULE_NAME, "QuantizeLinear"),
        (MODULE_NAME, "DequantizeLinear"),
    }
    assert all(reason.startswith("its zero point is computed") for _, _, reason in found)


def test_a_free_axis_without_a_length_is_refused(path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    with pytest.raises(EngineError, match="'x' has a free axis tiles; engines here have fixed shapes"):
        prepare(save(path, nodes, [], batch="tiles"), SIZE, 1)
    prepared = prepare(save(path, nodes, [], batch="batch"), SIZE, 3)
    assert prepared.model.graph.inputs[0].shape == ir.Shape([3, WIDTH])


def test_what_is_no_graph_is_said(path: Path) -> None:
    path.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match="not a graph that can be read"):
        prepare(path, SIZE, 1)


def test_an_opset_without_attention_is_said(path: Path) -> None:
    node = helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=1)
    model = onnx.load(save(path, [node], []))
    model.opset_import[0].version = 21
    onnx.save(model, path)
    with pytest.raises(UsageError, match="opset 21 has no Attention"):
        prepare(path, SIZE, 1)


def test_modules_of_nodes_that_passes_and_recipes_added(path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], name=f"{MODULE_NAME}.input.quantized.node"),
        helper.make_node("MatMul", ["a", "proj_out.weight"], ["b"], name="node_MatMul_7"),
        helper.make_node("Neg", ["b"], ["c"], name="node_neg"),
        helper.make_node("Abs", ["c"], ["d"], name="node_abs"),
        helper.make_node("Relu", ["d"], ["y"], name="last"),
    ]
    save(path, [nodes[-1]], [weight("proj_out.weight"), weight(f"{MODULE_NAME}.weight")])
    model = onnx.load(path)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    names = ModuleNames(ir.load(path))
    assert names.of_name(f"{MODULE_NAME}.input.quantized.node") == MODULE_NAME
    assert names.of_name("node_MatMul_7") == "proj_out"
    assert names.of_name("node_neg") == "node_neg"
    assert names.of_name("node_abs") == MODULE_NAME  # it feeds a node of that module
    assert names.of_name("unknown") == "unknown"


@needs_rtx
def test_the_library_builds_what_the_rules_let_pass(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    done = by_the_library(quantized(path, TensorProto.INT8), "8.6", output)
    assert done.layers > 0
    assert done.bytes == output.stat().st_size > 1000


@needs_rtx
def test_an_engine_that_cannot_be_written_is_told_from_a_refused_graph(path: Path, tmp_path: Path) -> None:
    one_node(path, "MatMul", "float16")
    assert refused_here(path, tmp_path / "nowhere" / "engine").while_ == "writing"


@needs_rtx
def test_the_library_refuses_fp8_below_ada_too(path: Path, tmp_path: Path) -> None:
    quantized(path, TensorProto.FLOAT8E4M3FN)
    with pytest.raises(RefusedError, match=r"refused while building .*fp8") as raised:
        by_the_library(path, "8.6", tmp_path / "engine")
    assert raised.value.failed.while_ == "building"
    assert by_the_library(path, "8.9", tmp_path / "engine").bytes > 0


@needs_rtx
def test_the_library_names_the_node_that_mixes_types(path: Path, tmp_path: Path) -> None:
    one_node(path, "Add", "float32")
    (trouble,) = refused_here(path, tmp_path / "engine").troubles
    assert (trouble.node, trouble.operator) == ("product", "Add")
    assert "must have same input types" in trouble.message


@needs_rtx
@pytest.mark.parametrize("case", ["unknown operator", "zero point", "UINT4"])
def test_the_library_refuses_what_the_rules_refuse(path: Path, tmp_path: Path, case: str) -> None:
    if case == "unknown operator":
        one_node(path, "MatMulNBits", "float16", "com.microsoft")
    else:
        quantized(path, TensorProto.UINT4 if case == "UINT4" else TensorProto.INT8, zero=0 if case == "UINT4" else 3)
    assert refusals(path)
    failed = refused_here(path, tmp_path / "engine")
    assert failed.while_ == "parsing"
    assert failed.troubles
    assert not (tmp_path / "engine").exists()


WITHOUT_PROFILE = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.ILogger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(sys.argv[1])
assert builder.build_serialized_network(network, builder.create_builder_config()) is None
"""


@needs_rtx
@pytest.mark.process
def test_the_library_refuses_a_free_axis_without_a_profile(path: Path) -> None:
    """Why shapes are fixed: its own words for what :func:`prepare` stops. In a process of its own, for a library's
    words go to the first logger that a process made."""
    save(path, [helper.make_node("Relu", ["x"], ["y"], name="relu")], [])
    asked = subprocess.run([sys.executable, "-c", WITHOUT_PROFILE, path], capture_output=True, text=True, timeout=300)
    assert asked.returncode == 0, asked.stderr
    assert "no optimization profile" in asked.stdout + asked.stderr


@needs_rtx
def test_the_library_builds_for_no_data_centre_gpu(tmp_path: Path) -> None:
    """An H20 (SM 9.0) is foreign to TensorRT for RTX, by the real library's own list."""
    known = load_library("rtx").compute_capabilities
    assert set(DEFAULT_SM) < set(known)
    bundle = make_fake_bundle(tmp_path / "bundle").path
    with pytest.raises(UsageError, match=r"does not build for SM 9\.0; it builds for .*8\.6, .*12\.0"):
        build_engines(bundle, BuildOptions("rtx", sm=("8.9", "9.0")))
    with pytest.raises(UsageError, match=r"does not build for SM 9\.0"):
        check_target(Bundle.open(bundle), "rtx", sm=("9.0",))
