"""The values of a graph whose reference is known: what enters and leaves blocks and modules, and the sums between them.

Each is computed from the nearest ones before it, which are given the reference's values: its error is its own, not what
came down to it, so neither float16 nor int8 adds up over the blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from livemoments.graphs.subgraphs import Network
from livemoments.types import Stage
from livemoments.validate.ladder.graph_values import expected_values as expected
from livemoments.validate.ladder.graph_values.expected_values import ExpectedValue
from livemoments.validate.ladder.graph_values.modules import ModuleOutput, find_modules
from livemoments.validate.ladder.graph_values.transformer_graph import (
    Block,
    Norm,
    Stream,
    Table,
    Transformer,
    find_blocks,
)
from livemoments.validate.ladder.recorded_runs import STEPPED, RecordedRun

_BLOCK = re.compile(r"transformer_blocks\.\d+")


@dataclass(frozen=True, slots=True)
class ComparableValue:
    """One value and how to know what it should be.

    Attributes:
        name: the value's in the graph.
        what: the checkpoint's module whose output it is, or the nearest one with a few words.
        expected: the ways to know it; the first that a run has is used.
    """

    name: str
    what: str
    expected: tuple[ExpectedValue, ...]

    @property
    def block(self) -> str | None:
        """``transformer_blocks.N``, if it lies in one."""
        match = _BLOCK.match(self.what)
        return None if match is None else match[0]

    @property
    def module(self) -> str:
        """The module's name alone."""
        return self.what.split(" ", 1)[0]


@dataclass(frozen=True)
class ComparableValues:
    """Everything that is known of a stage's graph.

    Attributes:
        by_name: the values that can be compared, in the graph's order.
        modules: the checkpoint's modules by name.
        transformer: the graph's anatomy, for the two transformers.
    """

    by_name: Mapping[str, ComparableValue]
    modules: Mapping[str, ModuleOutput]
    transformer: Transformer | None

    @property
    def tables(self) -> tuple[str, ...]:
        """The rows that are looked up in AdaLN tables, as far as they can be compared."""
        if self.transformer is None:
            return ()
        streams = [stream for block in self.transformer.blocks for stream in (block.image, block.text)]
        tables = [*(stream.table for stream in streams), self.transformer.table_out]
        return tuple(table.row for table in tables if table is not None and table.row in self.by_name)

    def known(self, run: RecordedRun) -> dict[str, ExpectedValue]:
        """The values that a run has, by name."""
        firsts = {
            name: next((way for way in value.expected if way.is_known(run)), None)
            for name, value in self.by_name.items()
        }
        return {name: way for name, way in firsts.items() if way is not None}

    def on_the_way(self, value: ComparableValue, stage: Stage, heads: int) -> list[ExpectedValue]:
        """What may be recognised on the way to a value of attention, to tell which node is at fault."""
        parts = list(value.expected)
        for block in () if self.transformer is None else self.transformer.blocks:
            if value.name in (block.key, block.value):
                parts += expected.parts_of_keys_and_values(block.prefix, block.index, stage)
            if value.module in (f"{block.prefix}{stream.out}" for stream in (block.image, block.text)):
                parts += expected.parts_of_attention(block.prefix, block.index, stage, heads)
        return parts


_Row = tuple[str | None, str, tuple[ExpectedValue, ...]]
"""A value (``None``: the graph does not have it), what it is, what is expected of it."""


def find_comparable_values(
    network: Network, stage: Stage, outputs: Sequence[str], *, smoothed: bool
) -> ComparableValues:
    """Find the values of a graph that can be compared.

    Args:
        network: the graph.
        stage: the stage that it is of.
        outputs: the stage's outputs, each of which can be compared.
        smoothed: the bundle may have been quantized with SmoothQuant, which moves scales from norms into weights: what
            lies between them can then not be compared.
    """
    transformer = find_blocks(network) if stage in STEPPED else None
    modules = find_modules(network) if transformer is None else transformer.modules
    by_name: dict[str, ComparableValue] = {}
    for value, what, ways in _rows(stage, transformer, modules, smoothed):
        if value is not None and network.maker(value) is not None:
            by_name.setdefault(value, ComparableValue(value, what, ways))
    for name in outputs:
        by_name.setdefault(name, ComparableValue(name, f"the output {name}", (expected.output(name),)))
    in_order = sorted(by_name, key=lambda name: network.maker(name) or 0)
    return ComparableValues({name: by_name[name] for name in in_order}, modules, transformer)


def entering_name(block: int) -> str:
    """Under which name what enters a block was recorded."""
    return f"block{block - 1}" if block else "embed"


def _rows(
    stage: Stage, transformer: Transformer | None, modules: Mapping[str, ModuleOutput], smoothed: bool
) -> Iterator[_Row]:
    for module in modules.values():
        yield module.value, module.name, (expected.module(module.name),)
    if transformer is None:
        return
    for name, value in transformer.text_tables.items():
        yield value, name, (expected.module(name),)
    for block in transformer.blocks:
        yield from _boundaries(block)
        yield from _attention(block, stage)
        for stream in (block.image, block.text):
            yield from _stream(block, stream, smoothed)
    norm_out = transformer.norm_out
    if norm_out is not None:
        yield from _table("norm_out", transformer.table_out, [norm_out] if smoothed else None)
        yield None if smoothed else norm_out.value, "norm_out", (expected.module("norm_out"),)


def _boundaries(block: Block) -> Iterator[_Row]:
    for stream, part, embedder in ((block.image, "hidden", "pos_embed"), (block.text, "context", "context_embedder")):
        if block.index == 0:
            yield stream.entering, embedder, (expected.recorded(f"embed.{part}"), expected.module(embedder))
        what = f"{block.prefix}{stream.feed_forward} (what leaves the block)"
        yield stream.leaving, what, (expected.recorded(f"block{block.index}.{part}"),)


def _attention(block: Block, stage: Stage) -> Iterator[_Row]:
    prefix = block.prefix
    of_both, of_image = expected.query(prefix)  # the last block of the restoration has image queries only
    yield block.query, f"{prefix}attn (queries)", (of_both if block.text.attended else of_image,)
    for value, part, what in ((block.key, "k", "keys"), (block.value, "v", "values")):
        yield value, f"{prefix}attn ({what})", (expected.keys_or_values(prefix, block.index, stage, part),)


def _stream(block: Block, stream: Stream, smoothed: bool) -> Iterator[_Row]:
    prefix, norm, out, inner = block.prefix, stream.name, stream.out, f"{stream.feed_forward}.net"
    part, plain = ("hidden", "norm2") if norm == "norm1" else ("context", "norm2_context")
    norms = [each for each in (stream.first, stream.second) if each is not None]
    yield from _table(f"{prefix}{norm}", stream.table, norms if smoothed else None)
    if not smoothed:
        yield _modulated(stream.first), f"{prefix}{norm}", tuple(expected.first_norm(prefix, norm))
        modulated = expected.second_norm(prefix, norm, plain)
        yield _modulated(stream.second), f"{prefix}{plain} (modulated)", (modulated,)
    yield stream.gated, f"{prefix}{out} (gated)", (expected.gated(prefix, norm, out, "gate_msa"),)
    added = expected.middle(prefix, norm, out, f"{entering_name(block.index)}.{part}")
    yield stream.middle, f"{prefix}{out} (added)", (added,)
    yield stream.activated, f"{prefix}{inner}.0", (expected.module(f"{prefix}{inner}.0"),)
    yield stream.gated_inner, f"{prefix}{inner}.2 (gated)", (expected.gated(prefix, norm, f"{inner}.2", "gate_mlp"),)


def _modulated(norm: Norm | None) -> str | None:
    return None if norm is None else norm.value


def _table(norm: str, table: Table | None, smoothed: Sequence[Norm] | None) -> Iterator[_Row]:
    """The rows of a table; of a smoothed one only those that no norm reads."""
    if table is None:
        return
    chunks = len(table.parts)
    yield None if smoothed is not None else table.row, norm, (expected.table_rows(norm, chunks),)
    changed = {value for reader in smoothed or () for value in (reader.scale, reader.shift)}
    for place, value in enumerate(table.parts):
        if value not in changed:
            yield value, f"{norm} (row {place})", (expected.table_part(norm, chunks, place),)
