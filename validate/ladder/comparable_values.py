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
from livemoments.validate.ladder import expected_values
from livemoments.validate.ladder.expected_values import ExpectedValue
from livemoments.validate.ladder.modules import ModuleOutput, find_modules
from livemoments.validate.ladder.recorded_runs import STEPPED, RecordedRun
from livemoments.validate.ladder.transformer_graph import Block, Norm, Stream, Table, Transformer, find_blocks

_BLOCK = re.compile(r"transformer_blocks\.\d+")


@dataclass(frozen=True, slots=True)
class ComparableValue:
    """One value and how to know what it should be.

    Attributes:
        value: its name in the graph.
        what: the checkpoint's module whose output it is, or the nearest one with a few words.
        intended: the ways to know it; the first that a pass has is used.
    """

    value: str
    what: str
    intended: tuple[ExpectedValue, ...]

    @property
    def block(self) -> str | None:
        """``transformer_blocks.N``, if it lies in one."""
        found = _BLOCK.match(self.what)
        return None if found is None else found[0]

    @property
    def module(self) -> str:
        """The module's name alone."""
        return self.what.split(" ", 1)[0]

    def at(self, given: RecordedRun) -> ExpectedValue | None:
        """How to know it in this pass; ``None`` if too little was recorded."""
        return next((way for way in self.intended if way.is_there(given)), None)


@dataclass(frozen=True)
class ComparableValues:
    """Everything known of a stage's graph.

    Attributes:
        values: by value, in the graph's order.
        modules: the checkpoint's modules by name.
        transformer: the graph's anatomy, for the two transformers.
    """

    values: Mapping[str, ComparableValue]
    modules: Mapping[str, ModuleOutput]
    transformer: Transformer | None

    @property
    def tables(self) -> tuple[str, ...]:
        """Of the values, the rows that are looked up in AdaLN tables."""
        if self.transformer is None:
            return ()
        streams = [stream for block in self.transformer.blocks for stream in (block.image, block.text)]
        found = [*(stream.table for stream in streams), self.transformer.table_out]
        return tuple(table.row for table in found if table is not None and table.row in self.values)

    def known(self, given: RecordedRun) -> dict[str, ExpectedValue]:
        """The values that a pass has."""
        ways = ((value, comparable.at(given)) for value, comparable in self.values.items())
        return {value: way for value, way in ways if way is not None}


def find_comparable_values(
    network: Network, stage: Stage, outputs: Sequence[str], *, smoothed: bool
) -> ComparableValues:
    """Find a graph's values.

    Args:
        network: the graph.
        stage: whose.
        outputs: of the stage; each is a comparable.
        smoothed: the bundle may have been quantized with SmoothQuant, which moves scales from norms into weights: what
            lies between them is then not comparable, and is no comparable.
    """
    transformer = find_blocks(network) if stage in STEPPED else None
    modules = find_modules(network) if transformer is None else transformer.modules
    found: dict[str, ComparableValue] = {}
    for comparable in _all(stage, transformer, modules, smoothed):
        if network.maker(comparable.value) is not None:
            found.setdefault(comparable.value, comparable)
    for name in outputs:
        found.setdefault(name, ComparableValue(name, f"the output {name}", (expected_values.output(name),)))
    place = {name: network.maker(name) or 0 for name in found}
    return ComparableValues(dict(sorted(found.items(), key=lambda item: place[item[0]])), modules, transformer)


def _all(
    stage: Stage,
    transformer: Transformer | None,
    modules: Mapping[str, ModuleOutput],
    smoothed: bool,
) -> Iterator[ComparableValue]:
    for module in modules.values():
        yield ComparableValue(module.value, module.name, (expected_values.module(module.name),))
    if transformer is None:
        return
    for name, value in transformer.text_tables.items():
        yield ComparableValue(value, name, (expected_values.module(name),))
    for block in transformer.blocks:
        yield from _boundaries(block)
        yield from _attention(block, stage)
        for stream in (block.image, block.text):
            yield from _stream(block, stream, smoothed)
    norm_out = transformer.norm_out
    if transformer.table_out is not None and norm_out is not None:
        yield from _table("norm_out", "norm_out", transformer.table_out, [norm_out] if smoothed else None)
    if norm_out is not None and not smoothed:
        yield ComparableValue(norm_out.value, "norm_out", (expected_values.module("norm_out"),))


def _boundaries(block: Block) -> Iterator[ComparableValue]:
    before = entering_name(block.index)
    for stream, part in ((block.image, "hidden"), (block.text, "context")):
        if stream.entering is not None and block.index == 0:
            what = "pos_embed" if part == "hidden" else "context_embedder"
            yield ComparableValue(
                stream.entering, what, (expected_values.recorded(f"{before}.{part}"), expected_values.module(what))
            )
        if stream.leaving is not None:
            what = f"{block.prefix}{stream.feed_forward} (what leaves the block)"
            yield ComparableValue(stream.leaving, what, (expected_values.recorded(f"block{block.index}.{part}"),))


def entering_name(block: int) -> str:
    """Under which name what enters a block was recorded."""
    return f"block{block - 1}" if block else "embed"


def _attention(block: Block, stage: Stage) -> Iterator[ComparableValue]:
    prefix = block.prefix
    if block.query is not None:
        # the last block of the restoration has image queries only
        ways = expected_values.query(prefix)
        yield ComparableValue(block.query, f"{prefix}attn (queries)", (ways[0],) if block.text.attended else (ways[1],))
    if block.key is not None:
        yield ComparableValue(block.key, f"{prefix}attn (keys)", (expected_values.keys(prefix, block.index, stage),))
    if block.value is not None:
        yield ComparableValue(
            block.value, f"{prefix}attn (values)", (expected_values.values(prefix, block.index, stage),)
        )


def _stream(block: Block, stream: Stream, smoothed: bool) -> Iterator[ComparableValue]:
    prefix, norm, inner = block.prefix, stream.name, f"{stream.feed_forward}.net"
    part = "hidden" if norm == "norm1" else "context"
    if stream.table is not None:
        norms = [found for found in (stream.first, stream.second) if found is not None]
        yield from _table(f"{prefix}{norm}", f"{prefix}{norm}", stream.table, norms if smoothed else None)
    if stream.first is not None and not smoothed:
        yield ComparableValue(stream.first.value, f"{prefix}{norm}", tuple(expected_values.first_norm(prefix, norm)))
    if stream.second is not None and not smoothed:
        name = "norm2" if norm == "norm1" else "norm2_context"
        yield ComparableValue(
            stream.second.value, f"{prefix}{name} (modulated)", (expected_values.second_norm(prefix, norm),)
        )
    if stream.gated is not None:
        way = expected_values.gated(prefix, norm, stream.out, "gate_msa")
        yield ComparableValue(stream.gated, f"{prefix}{stream.out} (gated)", (way,))
    if stream.middle is not None:
        way = expected_values.middle(prefix, norm, stream.out, f"{entering_name(block.index)}.{part}")
        yield ComparableValue(stream.middle, f"{prefix}{stream.out} (added)", (way,))
    if stream.activated is not None:
        yield ComparableValue(stream.activated, f"{prefix}{inner}.0", (expected_values.module(f"{prefix}{inner}.0"),))
    if stream.gated_inner is not None:
        way = expected_values.gated(prefix, norm, f"{inner}.2", "gate_mlp")
        yield ComparableValue(stream.gated_inner, f"{prefix}{inner}.2 (gated)", (way,))


def _table(what: str, norm: str, table: Table, smoothed: Sequence[Norm] | None) -> Iterator[ComparableValue]:
    """The rows of a table; of a smoothed one only those that no norm reads."""
    chunks = len(table.parts)
    if smoothed is None:
        yield ComparableValue(table.row, what, (expected_values.table_rows(norm, chunks),))
    changed = {value for found in smoothed or () for value in (found.scale, found.shift)}
    for place, value in enumerate(table.parts):
        if value not in changed:
            yield ComparableValue(value, f"{what} (row {place})", (expected_values.table_part(norm, chunks, place),))


def parts_on_the_way(
    comparable: ComparableValue, drawn: ComparableValues, stage: Stage, heads: int
) -> dict[str, ExpectedValue]:
    """What may lie on the way to a value of attention, by a name for people: to tell which node is at fault."""
    found = {f"{comparable.what} itself": way for way in comparable.intended}
    blocks = () if drawn.transformer is None else drawn.transformer.blocks
    for block in blocks:
        if comparable.value in (block.key, block.value):
            found |= expected_values.parts_of(block.prefix, block.index, stage)
        if comparable.module in (f"{block.prefix}{stream.out}" for stream in (block.image, block.text)):
            found |= expected_values.mixed_parts(block.prefix, block.index, stage, heads)
    return found
