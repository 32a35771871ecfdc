"""What the quantization tests share: a graph of two linears, what it gives, how a bundle's files compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from livemoments.graphs.linears import Linear, find_linears
from livemoments.graphs.tensors import read_tensor
from livemoments.ort import open_session
from livemoments.quantize.rewrite.round_weights import BlockWeights, ChannelWeights
from livemoments.types import Stage

POINTS = 3
FIRST, SECOND = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_k.weight"


@dataclass(frozen=True)
class Seen:
    """Ranges of a linear's input, as calibration gives them."""

    low: np.ndarray
    high: np.ndarray
    second_moment: np.ndarray


def two_linears(first: np.ndarray, second: np.ndarray, bias: np.ndarray) -> ir.Model:
    """``y = x @ first + bias`` and ``z = x @ second`` with x (rows, K); ``step`` is an input that nothing reads."""
    kind = ir.DataType.from_numpy(first.dtype)
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape(["rows", first.shape[0]]))
    step = ir.Value(name="step", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    constants = [
        ir.Value(
            name=name, const_value=ir.tensor(array, name=name), type=ir.TensorType(kind), shape=ir.Shape(array.shape)
        )
        for name, array in ((FIRST, first), (SECOND, second), ("bias", bias))
    ]
    products = [
        ir.Node("", "MatMul", [x, weight], num_outputs=1, name=f"matmul{i}") for i, weight in enumerate(constants[:2])
    ]
    add = ir.Node("", "Add", [products[0].outputs[0], constants[2]], num_outputs=1, name="add")
    for value, name in ((products[0].outputs[0], "product"), (add.outputs[0], "y"), (products[1].outputs[0], "z")):
        value.name, value.type, value.shape = name, ir.TensorType(kind), ir.Shape(["rows", first.shape[1]])
    outputs = [add.outputs[0], products[1].outputs[0]]
    nodes = [*products, add]
    graph = ir.Graph([x, step], outputs, nodes=nodes, initializers=constants, opset_imports={"": 23}, name="two")
    return ir.Model(graph, ir_version=10)


def run_model(model: ir.Model, x: np.ndarray, step: int = 0) -> list[np.ndarray]:
    """Run it in onnxruntime as engines are run: its optimizations make integer products exact on every processor."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor):
            stored = value.const_value
            value.const_value = ir.tensor(read_tensor(stored), dtype=stored.dtype, name=value.name)
    data = ir.to_proto(model).SerializeToString()
    session = open_session(data)
    found: list[np.ndarray] = session.run(None, {"x": x, "step": np.array(step)})
    return found


def dequantized(weights: ChannelWeights | BlockWeights) -> np.ndarray:
    """The weight (K, N) float32 that quantized values stand for."""
    if isinstance(weights, ChannelWeights):
        return weights.values.astype(np.float32) * weights.scale
    outputs, blocks = weights.scale.shape
    values = _unpacked(weights.values.reshape(outputs, -1), weights.bits)
    zero = _unpacked(weights.zero, weights.bits)[:, :blocks, None]
    steps = values.reshape(outputs, blocks, weights.block_size).astype(np.float32) - zero
    return np.ascontiguousarray((steps * weights.scale[..., None]).reshape(outputs, -1)[:, : weights.inputs].T)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Of two 4-bit values in a byte the first is in the low half."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def linears_of(model: ir.Model) -> list[Linear]:
    return find_linears(model, str(Stage.RESTORATION))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
