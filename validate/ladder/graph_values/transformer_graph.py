"""The inner values of a transformer's graph by what they mean: block boundaries first, and what lies between them.

Found from the weights' names outwards (``to_q`` reads the first norm, that norm reads what enters the block, …), so it
does not matter how an exporter or a quantizer named or ordered the rest. What is not found is ``None``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from livemoments.graphs.subgraphs import Network
from livemoments.validate.ladder.graph_values.modules import ModuleOutput, find_modules

_BLOCK = re.compile(r"^transformer_blocks\.(\d+)\.")
_NORM = "LayerNormalization"
_ATTENTION = "MultiHeadAttention"
_REARRANGING = ("Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split")
_IMAGE = ("norm1", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0", "ff")
_TEXT = (
    "norm1_context",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.to_add_out",
    "ff_context",
)


@dataclass(frozen=True, slots=True)
class Norm:
    """A modulated layer norm, by names of values: ``value = norm(data) * scale + shift``; scale is one plus the row."""

    value: str
    data: str
    scale: str | None
    shift: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """An AdaLN table and what is looked up in it: ``row`` (1, chunks, D), and its parts in the table's order."""

    row: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The image's or the text's way through one block, as names of values.

    Attributes:
        name: its first norm's module, ``norm1`` or ``norm1_context``.
        out: the module after attention.
        feed_forward: its feed-forward's module, ``ff`` or ``ff_context``.
        entering: what enters the block.
        first: the norm before attention.
        attended: attention's part for this stream.
        gated: attention's module times its gate.
        middle: what lies between attention and feed-forward.
        second: the norm before the feed-forward.
        activated: what the feed-forward's second linear reads.
        gated_inner: the feed-forward times its gate.
        leaving: what leaves the block.
        table: where its rows come from.
    """

    name: str
    out: str
    feed_forward: str
    entering: str | None = None
    first: Norm | None = None
    attended: str | None = None
    gated: str | None = None
    middle: str | None = None
    second: Norm | None = None
    activated: str | None = None
    gated_inner: str | None = None
    leaving: str | None = None
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block; ``query``, ``key`` and ``value`` are what its attention reads."""

    index: int
    image: Stream
    text: Stream
    query: str | None = None
    key: str | None = None
    value: str | None = None

    @property
    def prefix(self) -> str:
        """What its modules' names begin with."""
        return f"transformer_blocks.{self.index}."

    @property
    def boundary(self) -> dict[str, str]:
        """What leaves it: ``hidden`` (image) and ``context`` (text), as far as the graph computes them."""
        leaving = {"hidden": self.image.leaving, "context": self.text.leaving}
        return {name: value for name, value in leaving.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Transformer:
    """A transformer's blocks, its modules, and its last norm with the table behind it."""

    blocks: tuple[Block, ...]
    modules: Mapping[str, ModuleOutput]
    norm_out: Norm | None
    table_out: Table | None = None
    text_tables: Mapping[str, str] = field(default_factory=dict)
    """``attn.add_k_proj`` … of the first block to the value that is looked up in its stored text projections."""


def find_blocks(network: Network) -> Transformer:
    """Read a transformer's graph; ``blocks`` is empty for a graph that has none."""
    return _Reader(network).transformer()


class _Reader:
    """Reads one graph; what is asked of it is ``None`` where the graph does not have it."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.modules = find_modules(network)

    def transformer(self) -> Transformer:
        count = 1 + max((int(m[1]) for name in self.modules if (m := _BLOCK.match(name))), default=-1)
        first = [
            [self.first_norm(f"transformer_blocks.{index}.", projections) for _, projections, _, _ in (_IMAGE, _TEXT)]
            for index in range(count)
        ]
        norm_out = self.norm(self.modules["proj_out"].data) if "proj_out" in self.modules else None
        following = [*first[1:], [norm_out, None]]
        blocks = tuple(self.block(index, first[index], following[index]) for index in range(count))
        table_out = None if norm_out is None else self.table(norm_out)
        return Transformer(blocks, self.modules, norm_out, table_out, self.text_tables())

    def first_norm(self, prefix: str, projections: tuple[str, ...]) -> Norm | None:
        """What a stream's projections read: the norm of what enters its block."""
        norms = (self.norm(self.modules[prefix + name].data) for name in projections if prefix + name in self.modules)
        return next((norm for norm in norms if norm is not None), None)

    def block(self, index: int, first: Sequence[Norm | None], following: Sequence[Norm | None]) -> Block:
        """One block, from its own first norms and those of the block behind it."""
        image, text = (
            self.stream(f"transformer_blocks.{index}.", names, own, behind)
            for names, own, behind in zip((_IMAGE, _TEXT), first, following, strict=True)
        )
        attention = self.attention(image.attended) or self.attention(text.attended)
        if attention is None:
            return Block(index, image, text)
        query, key, value = (name or None for name in attention.input[:3])
        return Block(index, image, text, query, key, value)

    def stream(
        self, prefix: str, names: tuple[str, tuple[str, ...], str, str], first: Norm | None, behind: Norm | None
    ) -> Stream:
        """A stream's way through a block, backwards from what the norm behind it reads."""
        name, _, out, feed_forward = names
        projection = self.modules.get(f"{prefix}{feed_forward}.net.0.proj")
        inner, attended = self.modules.get(f"{prefix}{feed_forward}.net.2"), self.modules.get(prefix + out)
        second = None if projection is None else self.norm(projection.data)
        middle = None if second is None else second.data
        entering = None if first is None else first.data
        if entering is None and middle is not None:
            entering = self.operands(middle)[0]
        leaving = None if behind is None else behind.data
        gated_inner = self.other_operand(leaving, middle)
        tables = (self.table(norm) for norm in (first, second) if norm is not None)
        return Stream(
            name=name,
            out=out,
            feed_forward=feed_forward,
            entering=entering,
            first=first,
            attended=None if attended is None else attended.data,
            gated=self.other_operand(middle, entering),
            middle=middle,
            second=second,
            activated=None if inner is None else inner.data,
            gated_inner=gated_inner,
            leaving=leaving if gated_inner is not None else None,
            table=next((table for table in tables if table is not None), None),
        )

    def norm(self, value: str) -> Norm | None:
        """The layer norm whose output a value is."""
        maker = self.network.maker(value)
        if maker is None or self.network.nodes[maker].op_type != _NORM:
            return None
        inputs = [*self.network.nodes[maker].input, "", ""]
        return Norm(value, inputs[0], inputs[1] or None, inputs[2] or None)

    def table(self, norm: Norm) -> Table | None:
        """The table that a norm's rows come from: its scale is a part of ``Split(Reshape(Gather(table, step)))``."""
        nodes, makers = self.network.nodes, (self.network.maker(part) for part in (norm.scale, norm.shift) if part)
        for split in makers:
            if split is None or nodes[split].op_type != "Split":
                continue
            value = nodes[split].input[0]
            while (maker := self.network.maker(value)) is not None:
                node = nodes[maker]
                if node.op_type == "Gather" and node.input[0] in self.network.weights:
                    return Table(value, tuple(nodes[split].output))
                if node.op_type not in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"):
                    break
                value = node.input[0]
        return None

    def operands(self, value: str) -> tuple[str | None, str | None]:
        """What a value is the sum or the product of."""
        maker = self.network.maker(value)
        inputs = [] if maker is None else [name for name in self.network.nodes[maker].input if name]
        return (inputs[0], inputs[1]) if len(inputs) == 2 else (None, None)

    def other_operand(self, value: str | None, known: str | None) -> str | None:
        """What a value is the sum of besides ``known``."""
        pair = (None, None) if value is None else self.operands(value)
        if known is None or known not in pair:
            return None
        return pair[1] if pair[0] == known else pair[0]

    def attention(self, value: str | None) -> onnx.NodeProto | None:
        """The attention whose output, or a part of it, a value is."""
        while value is not None and (maker := self.network.maker(value)) is not None:
            node = self.network.nodes[maker]
            if node.op_type == _ATTENTION:
                return node
            if node.op_type not in _REARRANGING:
                return None
            value = node.input[0]
        return None

    def text_tables(self) -> dict[str, str]:
        """The first block's text projections where they are stored: module's name to the value looked up."""
        return {
            f"transformer_blocks.0.attn.add_{part}_proj": self.network.nodes[reader].output[0]
            for part in "qkv"
            for reader in self.network.readers(f"transformer_blocks.0.text.{part}")
            if self.network.nodes[reader].op_type == "Gather"
        }
