"""The inner values of a transformer's graph by what they mean: block boundaries first, and what lies between them.

Found from the weights' names outwards (``to_q`` reads the first norm, that norm reads what enters the block, …), so it
does not matter how an exporter or a quantizer named or ordered the rest. What is not found is ``None``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from livemoments.graphs.subgraphs import Network
from livemoments.validate.ladder.modules import ModuleOutput, find_modules

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

    name: str
    row: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The image's or the text's way through one block, as names of values.

    Attributes:
        name: of its first norm's module, ``norm1`` or ``norm1_context``.
        out: of the module after attention.
        feed_forward: of its feed-forward, ``ff`` or ``ff_context``.
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
    """One transformer block: ``attention`` is the node's index, ``mixed`` what it gives."""

    index: int
    image: Stream
    text: Stream
    query: str | None = None
    key: str | None = None
    value: str | None = None
    mixed: str | None = None
    attention: int | None = None

    @property
    def prefix(self) -> str:
        """What its modules' names begin with."""
        return f"transformer_blocks.{self.index}."

    @property
    def boundary(self) -> dict[str, str]:
        """What leaves it: ``hidden`` (image) and ``context`` (text), as far as the graph computes them."""
        found = {"hidden": self.image.leaving, "context": self.text.leaving}
        return {name: value for name, value in found.items() if value is not None}


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
    modules = find_modules(network)
    count = 1 + max((int(m[1]) for name in modules if (m := _BLOCK.match(name))), default=-1)
    first = [_entering(network, modules, index) for index in range(count)]
    norm_out = _norm(network, modules["proj_out"].data) if "proj_out" in modules else None
    blocks = []
    for index in range(count):
        following = first[index + 1] if index + 1 < count else (None if norm_out is None else norm_out.data, None)
        blocks.append(_block(network, modules, index, first[index], following))
    table_out = None if norm_out is None else _table(network, norm_out)
    return Transformer(tuple(blocks), modules, norm_out, table_out, _text_tables(network))


def _entering(network: Network, modules: Mapping[str, ModuleOutput], block: int) -> tuple[str | None, str | None]:
    """What enters a block's two streams, by the norms that their projections read."""
    found = []
    for _, projections, _, _ in (_IMAGE, _TEXT):
        norm = _first_norm(network, modules, f"transformer_blocks.{block}.", projections)
        found.append(None if norm is None else norm.data)
    return found[0], found[1]


def _first_norm(
    network: Network, modules: Mapping[str, ModuleOutput], prefix: str, projections: tuple[str, ...]
) -> Norm | None:
    norms = (_norm(network, modules[prefix + name].data) for name in projections if prefix + name in modules)
    return next((norm for norm in norms if norm is not None), None)


def _block(
    network: Network,
    modules: Mapping[str, ModuleOutput],
    index: int,
    entering: tuple[str | None, str | None],
    leaving: tuple[str | None, str | None],
) -> Block:
    prefix = f"transformer_blocks.{index}."
    image = _stream(network, modules, prefix, _IMAGE, entering[0], leaving[0])
    text = _stream(network, modules, prefix, _TEXT, entering[1], leaving[1])
    attention = next(
        (found for value in (image.attended, text.attended) if (found := _attention(network, value)) is not None), None
    )
    if attention is None:
        return Block(index, image, text)
    node = network.nodes[attention]
    query, key, value = (node.input[place] or None for place in range(3))
    return Block(index, image, text, query, key, value, node.output[0], attention)


def _stream(
    network: Network,
    modules: Mapping[str, ModuleOutput],
    prefix: str,
    names: tuple[str, tuple[str, ...], str, str],
    entering: str | None,
    leaving: str | None,
) -> Stream:
    name, projections, out, feed_forward = names
    first = _first_norm(network, modules, prefix, projections)
    projection, inner = modules.get(f"{prefix}{feed_forward}.net.0.proj"), modules.get(f"{prefix}{feed_forward}.net.2")
    attended = modules.get(prefix + out)
    second = None if projection is None else _norm(network, projection.data)
    middle = None if second is None else second.data
    if entering is None and middle is not None:
        entering = _operands(network, middle)[0]
    norms = [norm for norm in (first, second) if norm is not None]
    gated_inner = None if leaving is None else _other_operand(network, leaving, middle)
    return Stream(
        name=name,
        out=out,
        feed_forward=feed_forward,
        entering=entering,
        first=first,
        attended=None if attended is None else attended.data,
        gated=None if middle is None else _other_operand(network, middle, entering),
        middle=middle,
        second=second,
        activated=None if inner is None else inner.data,
        gated_inner=gated_inner,
        leaving=leaving if gated_inner is not None else None,
        table=next((table for norm in norms if (table := _table(network, norm)) is not None), None),
    )


def _norm(network: Network, value: str) -> Norm | None:
    """The layer norm whose output a value is, through what quantizes it."""
    maker = network.maker(value)
    if maker is None or network.nodes[maker].op_type != _NORM:
        return None
    inputs = [*network.nodes[maker].input, "", ""]
    return Norm(value, inputs[0], inputs[1] or None, inputs[2] or None)


def _table(network: Network, norm: Norm) -> Table | None:
    """The table that a norm's rows are looked up in: its scale is a part of ``Split(Reshape(Gather(table, step)))``."""
    for part in (norm.scale, norm.shift):
        split = None if part is None else network.maker(part)
        if split is None or network.nodes[split].op_type != "Split":
            continue
        value = network.nodes[split].input[0]
        while (maker := network.maker(value)) is not None:
            node = network.nodes[maker]
            if node.op_type == "Gather" and node.input[0] in network.weights:
                return Table(node.input[0], value, tuple(network.nodes[split].output))
            if node.op_type not in ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast"):
                break
            value = node.input[0]
    return None


def _operands(network: Network, value: str) -> tuple[str | None, str | None]:
    maker = network.maker(value)
    inputs = [] if maker is None else [name for name in network.nodes[maker].input if name]
    return (inputs[0], inputs[1]) if len(inputs) == 2 else (None, None)


def _other_operand(network: Network, value: str, known: str | None) -> str | None:
    """What a value is the sum of besides ``known``."""
    pair = _operands(network, value)
    if known is None or known not in pair:
        return None
    return pair[1] if pair[0] == known else pair[0]


def _attention(network: Network, value: str | None) -> int | None:
    """The attention whose output, or a part of it, a value is."""
    while value is not None and (maker := network.maker(value)) is not None:
        node = network.nodes[maker]
        if node.op_type == _ATTENTION:
            return maker
        if node.op_type not in _REARRANGING:
            return None
        value = node.input[0]
    return None


def _text_tables(network: Network) -> dict[str, str]:
    """The first block's text projections where they are stored: module's name to the value looked up."""
    found = {}
    for part in "qkv":
        for reader in network.readers(f"transformer_blocks.0.text.{part}"):
            if network.nodes[reader].op_type == "Gather":
                found[f"transformer_blocks.0.attn.add_{part}_proj"] = network.nodes[reader].output[0]
    return found
