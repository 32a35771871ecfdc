"""Parts of a bundle's graph, run on their own: from values that are known to values that are asked for.

A piece reads its weights from the bundle's file and is closed when its caller is done with it, so that memory holds one
piece and what it takes and gives, whatever the graph's size.

``onnx_ir.convenience.extract`` (1.1) was tried in place of :meth:`Network.cut`: it wants every input of the graph that
the piece reaches named beforehand, keeps the ones it does not reach, and gives an empty graph for a value that is given
and asked for, which :meth:`Network.cut_apart` needs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from livemoments.chains.chain import Segment
from livemoments.errors import EngineError
from livemoments.graphs.taps import open_segment
from livemoments.graphs.tensors import read_tensor
from livemoments.types import is_keys_values

_HALF, _FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


class Network:
    """A written graph as something to take pieces of; its weights stay on the disk.

    Args:
        path: the ``.onnx`` file.
        threads: threads within an operator.

    Attributes:
        nodes: the graph's nodes, in an order in which they can be computed.
        inputs, outputs: names of the graph's inputs and outputs.
        weights: initializers by name.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.path = path
        self._threads = threads
        self._model = onnx.load(path, load_external_data=False)
        graph = self._model.graph
        _float_keys_values(graph)
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.weights)
        self.outputs = tuple(value.name for value in graph.output)
        self._types = {value.name: value for value in (*graph.input, *graph.output, *graph.value_info)}
        self._maker = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self._readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(index)

    @property
    def is_half(self) -> bool:
        """Whether something in it computes in float16."""
        values = (value.type.tensor_type.elem_type for value in self._types.values())
        return _HALF in values or any(tensor.data_type == _HALF for tensor in self.weights.values())

    def maker(self, name: str) -> int | None:
        """Index of the node that gives a value; ``None`` for inputs and weights."""
        return self._maker.get(name)

    def readers(self, name: str) -> list[int]:
        """Indices of the nodes that read a value."""
        return self._readers.get(name, [])

    def is_float(self, name: str) -> bool:
        """Whether a value holds floats; one whose type the graph does not say counts as such."""
        known = self._types.get(name)
        return known is None or known.type.tensor_type.elem_type in (_FLOAT, _HALF, 0)

    def is_stored(self, name: str) -> bool:
        """Whether a value is a weight, or one that was only dequantized, cast or reshaped."""
        while name not in self.weights:
            maker = self._maker.get(name)
            if maker is None or self.nodes[maker].op_type not in ("DequantizeLinear", "Cast", "Reshape", "Transpose"):
                return False
            name = self.nodes[maker].input[0]
        return True

    def cone(self, outputs: Iterable[str], stops: Collection[str]) -> list[int]:
        """The nodes that ``outputs`` are computed by, back to the values in ``stops``, the inputs and the weights.

        The outputs themselves are computed even if they are in ``stops``.
        """
        reached: set[int] = set()
        ahead = [self._maker[name] for name in outputs if name in self._maker]
        while ahead:
            index = ahead.pop()
            if index in reached:
                continue
            reached.add(index)
            ahead += [
                self._maker[name] for name in self.nodes[index].input if name in self._maker and name not in stops
            ]
        return sorted(reached)

    def elements(self, name: str) -> int | None:
        """Elements of a value for one tile; ``None`` if the graph does not say."""
        known = self._types.get(name)
        if known is None or not known.type.tensor_type.HasField("shape"):
            return None
        return math.prod(dim.dim_value or 1 for dim in known.type.tensor_type.shape.dim)

    def cut(self, outputs: Sequence[str], stops: Collection[str], *, widen: bool = False) -> Piece:
        """The piece from ``stops`` (and the graph's inputs, where it reaches them) to ``outputs``.

        Args:
            outputs: values to compute; none of them may be an input of the graph, or one of the stops.
            stops: values that are given.
            widen: compute in float32 what the graph computes in float16: the piece's float32 twin, with the weights
                as they were rounded to be stored.

        Raises:
            EngineError: a value that the piece takes has no known type.
        """
        nodes = [self.nodes[index] for index in self.cone(outputs, stops)]
        return self._piece([_renamed(node, {}, set(stops)) for node in nodes], dict.fromkeys(outputs), widen)

    def cut_apart(self, outputs: Sequence[str], stops: Collection[str], *, widen: bool = False) -> Piece:
        """Several pieces in one, side by side: each output is computed from ``stops``, of which it may be one.

        Args:
            outputs: values to compute.
            stops: values that are given; an output among them is computed for itself and given to the others.
            widen: see :meth:`cut`.

        Raises:
            EngineError: a value that the piece takes has no known type.
        """
        nodes: list[onnx.NodeProto] = []
        computed: dict[str, str] = {}
        for number, output in enumerate(outputs):
            cone = self.cone([output], set(stops) - {output})
            names = {name: f"{name}@{number}" for index in cone for name in self.nodes[index].output if name}
            nodes += [_renamed(self.nodes[index], names, set(), f"@{number}") for index in cone]
            computed[output] = names[output]
        return self._piece(nodes, computed, widen)

    def _piece(self, nodes: Sequence[onnx.NodeProto], outputs: Mapping[str, str | None], widen: bool) -> Piece:
        """A model of these nodes; ``outputs`` says under which names they give what is asked for."""
        made = {name for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        inputs = [name for name in read if name not in self.weights]
        for name in inputs:
            if name not in self._types or not self._types[name].type.tensor_type.elem_type:
                raise EngineError(f"the graph does not say the type of '{name}'", fix="export the bundle again")
        part = onnx.GraphProto(name=f"{self._model.graph.name}.piece")
        part.node.extend(nodes)
        part.initializer.extend(self.weights[name] for name in read if name in self.weights)
        part.input.extend(self._types[name] for name in inputs)
        part.output.extend(self._typed(name, given or name) for name, given in outputs.items())
        _give_each_its_own_weights(part)
        if widen:
            _widen(part, self.path.parent)
        model = onnx.ModelProto(
            ir_version=self._model.ir_version,
            opset_import=self._model.opset_import,
            functions=self._model.functions,
            graph=part,
        )
        names = {given or name: name for name, given in outputs.items()}
        return Piece(model, self.path, tuple(inputs), names, self._threads)

    def _typed(self, name: str, given: str) -> onnx.ValueInfoProto:
        info = onnx.ValueInfoProto()
        if name in self._types:
            info.CopyFrom(self._types[name])
        info.name = given
        return info


def _float_keys_values(graph: onnx.GraphProto) -> None:
    """Let int8 keys and values be floats at the graph's edges, in place, so that what the reference computed fits."""
    scales = {tensor.name: tensor.data_type for tensor in graph.initializer}
    edges = {value.name: value for value in (*graph.input, *graph.output) if is_keys_values(value.name)}
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        if node.op_type == "DequantizeLinear" and node.input[0] in edges:
            name, inner = node.input[0], node.output[0]
        elif node.op_type == "QuantizeLinear" and node.output[0] in edges:
            name, inner = node.output[0], node.input[0]
        else:
            continue
        renamed[inner] = name
        edges[name].type.tensor_type.elem_type = scales[node.input[1]]
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]


def _renamed(node: onnx.NodeProto, names: Mapping[str, str], given: Collection[str], mark: str = "") -> onnx.NodeProto:
    """A copy of a node with other names of values; outputs that are given anyway (a split's other parts) step aside."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name += mark
    for place, name in enumerate(node.input):
        copy.input[place] = names.get(name, name)
    for place, name in enumerate(node.output):
        copy.output[place] = f"{name}.computed" if name in given else names.get(name, name)
    return copy


def _give_each_its_own_weights(part: onnx.GraphProto) -> None:
    """One dequantization of a weight per reader, each with tensors of its own.

    Where several share one, onnxruntime (1.32) makes unsigned weights of it several times when it avoids saturating
    products (:data:`livemoments.ort.EXACT_INTEGERS`), and then refuses the graph.
    """
    weights = {tensor.name: tensor for tensor in part.initializer}
    results = {value.name for value in part.output}
    seen: set[str] = set()
    originals: list[onnx.NodeProto] = []
    copies: list[onnx.NodeProto] = []
    for node in part.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in weights:
            continue
        (output,) = node.output
        places = [(reader, i) for reader in part.node for i, name in enumerate(reader.input) if name == output]
        for number, (reader, place) in enumerate(places if output in results else places[1:]):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name, copy.output[0] = f"{node.name}@own{number}", f"{output}@own{number}"
            reader.input[place] = copy.output[0]
            copies.append(copy)
        originals.append(node)
    for node in (*originals, *copies):
        for place, name in enumerate(node.input):
            if name in weights and name in seen:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(weights[name])
                tensor.name = f"{name}@{node.output[0]}"
                part.initializer.append(tensor)
                node.input[place] = tensor.name
            seen.add(name)
    rest = list(part.node)
    del part.node[:]
    part.node.extend([*copies, *rest])


class Piece:
    """A runnable part of a graph; a context manager that closes it.

    Attributes:
        inputs: values it takes.
        outputs: values it gives, in float32 whatever the graph has.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        path: Path,
        inputs: tuple[str, ...],
        outputs: Mapping[str, str],
        threads: int | None,
    ) -> None:
        self.inputs = inputs
        self.outputs = tuple(outputs.values())
        self._names = tuple(outputs)
        self._model: onnx.ModelProto | None = model
        self._path = path
        self._threads = threads
        self._types = {
            value.name: np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            for value in model.graph.input
        }
        self._session: Any = None

    def run(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs; ``values`` holds at least the inputs, in any float type.

        Raises:
            EngineError: the runtime does not accept the piece, or fails.
            ResourceError: memory ran out.
        """
        if self._session is None:
            self._session = self._open()
        feeds = {name: np.require(values[name], dtype=self._types[name], requirements="C") for name in self.inputs}
        try:
            arrays = self._session.run(list(self._names), feeds)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EngineError(f"{self._path}: the part that gives {', '.join(self.outputs)} fails: {reason}") from error
        return {
            name: array.astype(np.float32) if array.dtype.kind == "f" else array
            for name, array in zip(self.outputs, arrays, strict=True)
        }

    def __enter__(self) -> Piece:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None

    def _open(self) -> Any:
        if self._model is None:
            raise EngineError("the piece is closed")
        segment = Segment(self._model.SerializeToString(), self.inputs, self._names)
        self._model = None
        return open_segment(segment, self._path, threads=self._threads, prepack=False)


def _widen(graph: onnx.GraphProto, folder: Path) -> None:
    """Make a piece's float16 float32, in place: values, weights, casts."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _FLOAT
    weights = [_wide_tensor(tensor, folder) for tensor in graph.initializer]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    nodes = list(graph.node)
    del graph.node[:]  # what it held may be shared with the whole graph
    for node in nodes:
        copy = graph.node.add()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            if copy.op_type == "Cast" and attribute.name == "to" and attribute.i == _HALF:
                attribute.i = _FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _HALF:
                attribute.t.CopyFrom(_wide_tensor(attribute.t, folder))


def _wide_tensor(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    if tensor.data_type != _HALF:
        return tensor
    wide = read_tensor(ir.serde.deserialize_tensor(tensor, folder)).astype(np.float32)
    return numpy_helper.from_array(wide, tensor.name)
