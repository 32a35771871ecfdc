"""A transformer run block by block: what leaves each block, on the engine's own way and on its own.

Only the boundaries come out, one block's at a time; they are compared and dropped before the next block runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from livemoments.bundle import Bundle
from livemoments.graphs.subgraphs import Network, Piece
from livemoments.manifest import Graph
from livemoments.types import Stage
from livemoments.validate.ladder.comparable_values import entering_name
from livemoments.validate.ladder.recorded_runs import RecordedRun
from livemoments.validate.ladder.tensor_distance import Distance, tensor_distance
from livemoments.validate.ladder.transformer_graph import Block, Transformer, find_blocks

_KEPT_WEIGHTS_BYTES = 1 << 28
"""Blocks of smaller networks stay loaded from one pass to the next."""


@dataclass(frozen=True, slots=True)
class BlockError:
    """One boundary in one pass.

    Attributes:
        block: index of the block that it leaves.
        part: ``hidden`` (the image's tokens) or ``context`` (the text's).
        given: the pass.
        own: with the network's inputs as recorded and everything else the engine's own.
        alone: with what enters the block as recorded; ``None`` where that was not recorded.
    """

    block: int
    part: str
    given: RecordedRun
    own: Distance
    alone: Distance | None

    @property
    def worst(self) -> float:
        """The larger of the two errors; NaN if either is."""
        errors = [self.own.rel_l2, *([] if self.alone is None else [self.alone.rel_l2])]
        return max(errors, key=lambda error: np.inf if np.isnan(error) else error)


class BlockErrors:
    """Walks through the blocks of one graph.

    Args:
        bundle: whose.
        stage: one of the two transformers.
        graph: the stage's, for the recording's tile size.
    """

    def __init__(self, bundle: Bundle, stage: Stage, graph: Graph) -> None:
        self.network = Network(bundle.path / graph.path)
        self.transformer: Transformer = find_blocks(self.network)
        self._keep = sum(bundle.manifest.files[name].bytes for name in graph.weights) <= _KEPT_WEIGHTS_BYTES
        self._pieces: dict[int, Piece] = {}
        self._stage = stage

    def __enter__(self) -> BlockErrors:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.clear()

    def of(self, given: RecordedRun) -> Iterator[BlockError]:
        """Every recorded boundary of a pass, block by block."""
        own: dict[str, np.ndarray] = {}
        inputs = given.case.inputs
        before: Mapping[str, str] = {}
        for block in self.transformer.blocks:
            if not block.boundary:  # the reference's last block ends with its keys and values
                continue
            piece = self._piece(block, before)
            alone = self._alone(piece, given, block, before)
            own = piece.run({**inputs, **own})
            for part, value in block.boundary.items():
                name = f"block{block.index}.{part}"
                if not given.has(name):
                    continue
                want = given.read(name)
                yield BlockError(
                    block.index,
                    part,
                    given,
                    tensor_distance(own[value], want),
                    None if alone is None else tensor_distance(alone[value], want),
                )
            before = block.boundary

    def _piece(self, block: Block, before: Mapping[str, str]) -> Piece:
        piece = self._pieces.get(block.index)
        if piece is None:
            piece = self.network.cut(tuple(block.boundary.values()), set(before.values()))
            if self._keep:
                self._pieces[block.index] = piece
        return piece

    def _alone(
        self, piece: Piece, given: RecordedRun, block: Block, before: Mapping[str, str]
    ) -> dict[str, np.ndarray] | None:
        """What the block makes of what entered the reference's; ``None`` for the first, which has no other way."""
        names = {
            value: f"{entering_name(block.index)}.{part}" for part, value in before.items() if value in piece.inputs
        }
        if not names or not given.has(*names.values()):
            return None
        return piece.run({**given.case.inputs, **{value: given.read(name) for value, name in names.items()}})
