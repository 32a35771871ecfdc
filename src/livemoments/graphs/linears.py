"""The matrix products of a graph whose weights could be stored otherwise: linears, found by the checkpoint's names.

A linear is a ``MatMul`` of an activation with a 2-D initializer, stored (in, out) under its checkpoint name; a bias is
an ``Add`` after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from livemoments.errors import UsageError

_BLOCK = re.compile(r"(?:^|\.)transformer_blocks\.(\d+)\.(.+)\.weight$")


@dataclass(frozen=True, slots=True, order=True)
class LinearId:
    """One weight of one stage: ``restoration/transformer_blocks.3.attn.to_q.weight``."""

    stage: str
    weight: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.weight}"

    @classmethod
    def parse(cls, text: str) -> LinearId:
        """Read what ``str`` wrote.

        Raises:
            UsageError: there is no slash in it.
        """
        stage, slash, weight = text.partition("/")
        if not (stage and slash and weight):
            raise UsageError(f"'{text}' does not name a layer", fix="write STAGE/WEIGHT")
        return cls(stage, weight)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear as found in a graph.

    Attributes:
        id: its stage and weight.
        input_value: name of its input in the graph, (..., in_features).
        in_features: K, rows of the stored weight.
        out_features: N, columns of the stored weight.
        block: the transformer block, ``None`` outside of one.
        kind: the linear's place in its block, e.g. ``attn.to_q``; outside of a block the weight's name.
        norm: name of the layer norm's output that is this input, ``None`` if something else feeds it.
        table: initializer (P, chunks, D) that modulates that norm, ``None`` without one.
        scale_chunk: the norm's scale is ``table[step, scale_chunk]``.
        shift_chunk: and its shift is ``table[step, shift_chunk]``.
    """

    id: LinearId
    input_value: str
    in_features: int
    out_features: int
    block: int | None
    kind: str
    norm: str | None = None
    table: str | None = None
    scale_chunk: int | None = None
    shift_chunk: int | None = None

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        return self.in_features * self.out_features


def find_linears(model: ir.Model, stage: str) -> list[Linear]:
    """Every linear of a graph, in the graph's order.

    A weight that several products read is listed once, at its first one.
    """
    linears: dict[str, Linear] = {}
    for _, data, weight in iter_linear_nodes(model):
        name = weight.name or ""
        if name in linears:
            continue
        rows, columns = weight.shape.numpy() if weight.shape is not None else (0, 0)
        block, kind = _place(name)
        linears[name] = Linear(LinearId(stage, name), data.name or "", rows, columns, block, kind, *_norm(data))
    return list(linears.values())


def iter_linear_nodes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
    """Every product that is a linear: the node, its input, its weight."""
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        data, weight = node.inputs
        if data is None or weight is None or not _is_weight(weight) or _is_weight(data):
            continue
        yield node, data, weight


def _is_weight(value: ir.Value) -> bool:
    tensor = value.const_value
    return (
        value.is_initializer()
        and tensor is not None
        and tensor.dtype.is_floating_point()
        and len(tensor.shape.numpy()) == 2
    )


def _place(weight: str) -> tuple[int | None, str]:
    """The block and the kind that a weight's name says."""
    match = _BLOCK.search(weight)
    return (int(match[1]), match[2]) if match else (None, weight.removesuffix(".weight"))


def _norm(data: ir.Value) -> tuple[str | None, str | None, int | None, int | None]:
    """The layer norm that makes a value, the table behind its scale and shift, and their chunks."""
    norm = data.producer()
    if norm is None or norm.op_type != "LayerNormalization":
        return None, None, None, None
    inputs = list(norm.inputs) + [None] * (3 - len(norm.inputs))
    scale, shift = (_chunk(value) for value in inputs[1:3])
    if scale is None or shift is None or scale[0] != shift[0]:
        return data.name, None, None, None
    return data.name, scale[0], scale[1], shift[1]


def _chunk(value: ir.Value | None) -> tuple[str, int] | None:
    """The table and the chunk of it that a value is: an output of Split(Reshape(Gather(table, step)))."""
    split = value.producer() if value is not None else None
    if value is None or split is None or split.op_type != "Split":
        return None
    number = value.index()
    source = split.inputs[0]
    while source is not None and (node := source.producer()) is not None:
        if node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            return (node.inputs[0].name or "", number) if number is not None else None
        # only what keeps the elements in their order may lie between
        if node.op_type not in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"):
            return None
        source = node.inputs[0]
    return None
