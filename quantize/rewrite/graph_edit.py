"""What the rewrites share: reading weights one at a time, adding constants and nodes to a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from livemoments.graphs.linears import Linear
from livemoments.graphs.tensors import read_tensor
from livemoments.quantize.rotation import hadamard, rotate

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Target:
    """A linear to rewrite: the graph's node, its input, its weight; the blocks in which its input is to be rotated."""

    linear: Linear
    node: ir.Node
    data: ir.Value
    weight: ir.Value
    rotation: int = 1

    @property
    def name(self) -> str:
        """The weight's name without its ending: what new constants are named after."""
        return self.linear.id.weight.removesuffix(".weight")

    @property
    def float_type(self) -> ir.DataType:
        """The type that the linear computes in: its weight's."""
        return self.stored.dtype

    @property
    def stored(self) -> ir.TensorProtocol:
        """The weight as it is stored."""
        assert self.weight.const_value is not None, f"'{self.weight.name}' has no value"
        return self.weight.const_value

    def read_weight(self) -> np.ndarray:
        """The weight (K, N) in float32, for the rotated input."""
        return rotate(read_tensor(self.stored).astype(np.float32, copy=False), self.rotation, axis=0)


class LastResult:
    """Remembers what one computation gave, so that the parts of a quantized weight, which are written one after the
    other, cost one quantization and never more than one weight's memory.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._result: Any = None

    def of(self, key: object, compute: Callable[[], R]) -> R:
        """``compute()``, unless it was the last one that was asked for."""
        if self._key != key:
            self._key, self._result = None, None  # the old one goes before the new one comes
            self._result = compute()
            self._key = key
        result: R = self._result
        return result


class GraphEditor:
    """Adds constants and nodes to a graph; new values are named after what they belong to."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small constant, stored in the graph's own file; the one of this name if there is one already."""
        return self._register(name, ir.tensor(array, name=name))

    def lazy(self, name: str, make: Callable[[], np.ndarray], dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
        """A constant that is computed when it is written."""

        def read() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(make()), dtype=dtype, name=name)

        return self._register(name, ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name))

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.graph.initializers:
            shape = ir.Shape(tensor.shape.numpy())
            self.graph.register_initializer(ir.val(name, tensor.dtype, shape, const_value=tensor))
        return self.graph.initializers[name]

    def before(
        self,
        place: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType,
        *,
        like: ir.Value | None = None,
        domain: str = "",
        **attributes: int,
    ) -> ir.Value:
        """Insert a node before another one; returns its output.

        Args:
            place: the node to insert before.
            op: the operator.
            inputs: its inputs.
            name: the output's name.
            dtype: the output's type.
            like: a value whose shape the output has.
            domain: the operator's domain.
            attributes: the operator's attributes.
        """
        output = ir.val(name, dtype, None if like is None else like.shape)
        self.insert(place, op, inputs, [output], domain, **attributes)
        return output

    def insert(
        self,
        place: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        domain: str = "",
        **attributes: int,
    ) -> None:
        """Insert a node with these outputs before another one."""
        name = f"{outputs[0].name}.node"
        self.graph.insert_before(place, ir.node(op, inputs, attributes, domain=domain, outputs=outputs, name=name))

    def cast(self, place: ir.Node, value: ir.Value, name: str, dtype: ir.DataType, like: ir.Value) -> ir.Value:
        """The value in another type, cast before a node; itself if it has that type."""
        if value.dtype == dtype:
            return value
        return self.before(place, "Cast", [value], name, dtype, like=like, to=int(dtype))

    def rotated(self, place: ir.Node, value: ir.Value, name: str, block: int) -> ir.Value:
        """The value (..., K), rotated in blocks of its channels before a node; itself for blocks of 1."""
        if block == 1:
            return value
        dtype, shape = value.dtype, value.shape
        assert dtype is not None, f"'{value.name}' has no type"
        assert shape is not None, f"'{value.name}' has no shape"
        outer = [0] * (len(shape) - 1)
        matrix = self.constant(f"hadamard.{block}", hadamard(block).astype(dtype.numpy()))
        to_blocks = self.constant(f"hadamard.{block}.blocks.{len(shape)}", np.array([*outer, -1, block], np.int64))
        back = self.constant(f"hadamard.whole.{shape[-1]}.{len(shape)}", np.array([*outer, shape[-1]], np.int64))
        split = self.before(place, "Reshape", [value, to_blocks], f"{name}.blocks", dtype)
        mixed = self.before(place, "MatMul", [split, matrix], f"{name}.mixed", dtype)
        return self.before(place, "Reshape", [mixed, back], f"{name}.rotated", dtype, like=value)

    def replace(self, old: ir.Node, new: ir.Value) -> None:
        """Let everything read ``new`` instead of what ``old`` gives, and remove ``old``; the name stays."""
        result = old.outputs[0]
        name = result.name
        ir.convenience.replace_all_uses_with(result, new, replace_graph_outputs=True)
        result.name = f"{name}.replaced"
        new.name, new.shape = name, result.shape
        self.graph.remove(old, safe=True)


def as_scale(scale: np.ndarray, kind: ir.DataType) -> np.ndarray:
    """Scales in the type of the graph; those too small for it become its smallest normal number instead of 0."""
    dtype = kind.numpy()
    return np.maximum(scale.astype(dtype), np.finfo(dtype).smallest_normal)
