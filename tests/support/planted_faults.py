"""Copies of a bundle with one fault each, as a buggy exporter might write them: they open without complaint.

Only the graph's file is written anew; weights stay hard links, and change places by their offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from real_runs import copy_linked, replace

from livemoments.bundle import MANIFEST_NAME, Bundle, hash_file, open_bundle
from livemoments.graphs.tensors import read_tensor
from livemoments.manifest import Manifest

Fault = Callable[[onnx.GraphProto, Path], None]
"""Changes a graph in place; the folder is where its weights are."""


def plant(source: Path, target: Path, stage: str, fault: Fault, tile: str = "128x128") -> Bundle:
    """A copy of a bundle whose graph of one stage has the fault; its manifest agrees with it."""
    folder = copy_linked(source, target)
    path = f"{stage}/{tile}.onnx"
    model = onnx.load(folder / path, load_external_data=False)
    fault(model.graph, folder / stage)
    replace(folder / path, model.SerializeToString())
    manifest = msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=Manifest)
    files = {**manifest.files, path: hash_file(folder / path)}
    replace(folder / MANIFEST_NAME, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))
    return open_bundle(folder)


def exact_gelu(block: int, feed_forward: str = "ff") -> Fault:
    """The GELU of one feed-forward without the tanh approximation."""

    def apply(graph: onnx.GraphProto, _: Path) -> None:
        node = _gelu(graph, block, feed_forward)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("approximate", "none"))

    return apply


def gelu_by_erf(block: int, feed_forward: str = "ff") -> Fault:
    """The same, written out: ``x / 2 (1 + erf(x / sqrt 2))``."""

    def apply(graph: onnx.GraphProto, _: Path) -> None:
        node = _gelu(graph, block, feed_forward)
        x, y = node.input[0], node.output[0]
        kind = np.float16 if _is_half(graph, x) else np.float32
        for name, value in (("root", np.sqrt(2)), ("one", 1), ("half", 0.5)):
            graph.initializer.append(numpy_helper.from_array(np.array(value, kind), f"planted.{name}"))
        chain = [
            helper.make_node("Div", [x, "planted.root"], ["planted.d"], "planted_div"),
            helper.make_node("Erf", ["planted.d"], ["planted.e"], "planted_erf"),
            helper.make_node("Add", ["planted.e", "planted.one"], ["planted.a"], "planted_add"),
            helper.make_node("Mul", [x, "planted.a"], ["planted.m"], "planted_mul"),
            helper.make_node("Mul", ["planted.m", "planted.half"], [y], "planted_half"),
        ]
        _instead(graph, node, chain)

    return apply


def swapped_weights(first: str, second: str) -> Fault:
    """Two weights of one shape change places, with their scales if they are quantized."""

    def apply(graph: onnx.GraphProto, _: Path) -> None:
        for part in ("", ".values", ".scale"):
            found = [t for t in graph.initializer if t.name in (f"{first}.weight{part}", f"{second}.weight{part}")]
            if len(found) == 2:
                found[0].name, found[1].name = found[1].name, found[0].name

    return apply


def wrong_input(node_reads: str, instead: str, op: str) -> Fault:
    """The nodes of one kind that read one value read another one."""

    def apply(graph: onnx.GraphProto, _: Path) -> None:
        count = 0
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == node_reads and node.op_type == op:
                    node.input[place] = instead
                    count += 1
        assert count

    return apply


def heads_transposed(block: int, heads: int) -> Fault:
    """The keys of one block's attention with heads and channels exchanged."""

    def apply(graph: onnx.GraphProto, _: Path) -> None:
        node = _attentions(graph)[block]
        key = node.input[1]
        width = next(v for v in graph.value_info if v.name == key).type.tensor_type.shape.dim[-1].dim_value
        for name, shape in (("split", [0, 0, heads, width // heads]), ("join", [0, 0, width])):
            graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"planted.{name}"))
        chain = [
            helper.make_node("Reshape", [key, "planted.split"], ["planted.heads"], "planted_split"),
            helper.make_node(
                "Transpose", ["planted.heads"], ["planted.turned"], "planted_transpose", perm=[0, 1, 3, 2]
            ),
            helper.make_node("Reshape", ["planted.turned", "planted.join"], ["planted.keys"], "planted_join"),
        ]
        kind = next(v for v in graph.value_info if v.name == key).type.tensor_type.elem_type
        graph.value_info.append(helper.make_tensor_value_info("planted.keys", kind, ["batch", None, width]))
        node.input[1] = "planted.keys"
        place = list(graph.node).index(node)
        for number, extra in enumerate(chain):
            graph.node.insert(place + number, extra)

    return apply


def shifted_tables(ending: str, by: int = 1) -> Fault:
    """Every AdaLN table whose name ends so is off by a number of timesteps."""

    def apply(graph: onnx.GraphProto, folder: Path) -> None:
        count = 0
        for tensor in graph.initializer:
            if tensor.name.endswith(ending) and tensor.name.endswith(".table"):
                rows = read_tensor(ir.serde.deserialize_tensor(tensor, folder))
                tensor.CopyFrom(numpy_helper.from_array(np.roll(rows, by, axis=0), tensor.name))
                count += 1
        assert count

    return apply


def other_operator(before: str, after: str, reads: str) -> Fault:
    """One operator instead of another, in the nodes that read a value."""

    def apply(graph: onnx.GraphProto, _: Path) -> None:
        found = [node for node in graph.node if node.op_type == before and reads in node.input]
        assert len(found) == 1
        found[0].op_type = after

    return apply


def scaled_bias(module: str, factor: float) -> Fault:
    """One bias is too large."""

    def apply(graph: onnx.GraphProto, folder: Path) -> None:
        tensor = next(t for t in graph.initializer if t.name == f"{module}.bias")
        value = read_tensor(ir.serde.deserialize_tensor(tensor, folder))
        tensor.CopyFrom(numpy_helper.from_array((value * factor).astype(value.dtype), tensor.name))

    return apply


def reader(bundle: Bundle, stage: str, value: str, op: str, tile: str = "128x128") -> onnx.NodeProto:
    """The node of one kind that reads a value."""
    graph = onnx.load(bundle.path / stage / f"{tile}.onnx", load_external_data=False).graph
    return next(node for node in graph.node if node.op_type == op and value in node.input)


def _gelu(graph: onnx.GraphProto, block: int, feed_forward: str) -> onnx.NodeProto:
    bias = f"transformer_blocks.{block}.{feed_forward}.net.0.proj.bias"
    inner = next(node.output[0] for node in graph.node if bias in node.input)
    return next(node for node in graph.node if node.op_type == "Gelu" and inner in node.input)


def _attentions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "MultiHeadAttention"]


def _is_half(graph: onnx.GraphProto, name: str) -> bool:
    value = next(v for v in graph.value_info if v.name == name)
    return bool(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16)


def _instead(graph: onnx.GraphProto, node: onnx.NodeProto, chain: list[onnx.NodeProto]) -> None:
    place = list(graph.node).index(node)
    graph.node.remove(node)
    for number, extra in enumerate(chain):
        graph.node.insert(place + number, extra)
