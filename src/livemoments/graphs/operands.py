"""What attention reads, and the keys and values between the two networks: the activations besides linears' inputs whose
ranges 8-bit engines must know.

Attention is onnxruntime's ``MultiHeadAttention`` on (B, S, D) or the standard ``Attention`` on
(B, heads, S, D / heads); both are listed with the (B, S, D) that they read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from livemoments.graphs.linears import LinearId
from livemoments.types import is_keys_values

PARTS = ("query", "key", "value")
_OPERAND = re.compile(r"attention\.\d+\.(?:query|key|value)")


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys or values of one block on their way from ReferenceNet to RestorationNet.

    Attributes:
        id: ``reference/reference_k.N`` or ``reference/reference_v.N``, in both networks.
        tokens: the (B, S, D) output or input.
        width: D.
    """

    id: LinearId
    tokens: ir.Value
    width: int


@dataclass(frozen=True, slots=True)
class Operand:
    """One of the three tensors that an attention reads.

    Attributes:
        id: its stage, and ``attention.N.query`` of the graph's Nth attention (of block N).
        tokens: the (B, S, D) value behind it.
        width: D.
        node: the attention.
        place: which of the node's inputs.
        head_dim: channels of a head.
    """

    id: LinearId
    tokens: ir.Value
    width: int
    node: ir.Node
    place: int
    head_dim: int


def find_operands(model: ir.Model, stage: str) -> list[Operand]:
    """The operands of every attention without masks or caches, in the graph's order."""
    found: list[Operand] = []
    attentions = [node for node in model.graph if node.op_type in ("MultiHeadAttention", "Attention")]
    for number, node in enumerate(attentions):
        heads = _heads(node)
        if not heads or any(value is not None for value in node.inputs[3:]):
            continue
        for place, part in enumerate(PARTS):
            value = node.inputs[place]
            tokens = value if node.op_type == "MultiHeadAttention" else _before_split(value)
            width = _width(tokens)
            if tokens is not None and width:
                name = LinearId(stage, f"attention.{number}.{part}")
                found.append(Operand(name, tokens, width, node, place, width // heads))
    return found


def find_keys_values(model: ir.Model, stage: str) -> list[KeysValues]:
    """What ReferenceNet's graph gives and RestorationNet's takes, in the order of the outputs or inputs."""
    values = model.graph.outputs if stage == "reference" else model.graph.inputs
    return [
        KeysValues(LinearId("reference", value.name or ""), value, _width(value))
        for value in values
        if is_keys_values(value.name or "")
    ]


def is_operand(name: str) -> bool:
    """Whether a name of this module stands for an activation that no linear reads."""
    return is_keys_values(name) or _OPERAND.fullmatch(name) is not None


def _width(value: ir.Value | None) -> int:
    """Length of the last axis, 0 where the graph does not say it."""
    last = value.shape[-1] if value is not None and value.shape is not None and len(value.shape) else 0
    return last if isinstance(last, int) else 0


def _heads(node: ir.Node) -> int:
    if node.op_type == "MultiHeadAttention":
        return node.attributes["num_heads"].as_int()
    query = node.inputs[0]
    heads = query.shape[1] if query is not None and query.shape is not None else 0
    return heads if isinstance(heads, int) else 0


def _before_split(value: ir.Value | None) -> ir.Value | None:
    """The tokens that were reshaped to heads and transposed to ``value``."""
    for kind in ("Transpose", "Reshape"):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != kind:
            return None
        value = node.inputs[0]
    return value
