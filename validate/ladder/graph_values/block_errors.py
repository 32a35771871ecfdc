"""The error of what leaves each block of a transformer: accumulated over the blocks before it, and in isolation.

The network runs block by block; only the boundaries come out, one block's at a time; they are compared and dropped
before the next block runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from livemoments.bundle import Bundle
from livemoments.graphs.subgraphs import Network, Piece
from livemoments.manifest import Graph
from livemoments.types import Stage
from livemoments.validate.ladder.graph_values.comparable_values import entering_name
from livemoments.validate.ladder.graph_values.isolated_errors import KEPT_WEIGHTS_BYTES
from livemoments.validate.ladder.graph_values.transformer_graph import Block, Transformer, find_blocks
from livemoments.validate.ladder.recorded_runs import STEPPED, RecordedRun
from livemoments.validate.ladder.tensor_distance import Distance, tensor_distance


@dataclass(frozen=True, slots=True)
class BlockError:
    """One boundary in one run.

    Attributes:
        block: index of the block that it leaves.
        part: ``hidden`` (the image's tokens) or ``context`` (the text's).
        run: the recorded run.
        accumulated: with the network's inputs as recorded and everything else as the engine computes it.
        isolated: with what enters the block as recorded; ``None`` where that was not recorded.
    """

    block: int
    part: str
    run: RecordedRun
    accumulated: Distance
    isolated: Distance | None

    @property
    def worst(self) -> float:
        """The larger of the two relative errors; NaN if either is."""
        errors = [self.accumulated.rel_l2, *([] if self.isolated is None else [self.isolated.rel_l2])]
        return max(errors, key=nan_last)


def nan_last(error: float) -> float:
    """A key to sort errors by: NaN is worse than any number."""
    return math.inf if math.isnan(error) else error


class BlockErrors:
    """Compares the boundaries of one graph.

    Args:
        bundle: opened.
        stage: one of the two transformers.
        graph: the stage's graph for the recording's tile size.
    """

    def __init__(self, bundle: Bundle, stage: Stage, graph: Graph) -> None:
        self.network = Network(bundle.path / graph.path)
        self.transformer: Transformer = find_blocks(self.network)
        self._keep = sum(bundle.manifest.files[name].bytes for name in graph.weights) <= KEPT_WEIGHTS_BYTES
        self._pieces: dict[int, Piece] = {}
        self._stage = stage

    def of(self, run: RecordedRun) -> Iterator[BlockError]:
        """Every recorded boundary of a run, block by block."""
        accumulated: dict[str, np.ndarray] = {}
        inputs = run.case.inputs
        before: Mapping[str, str] = {}
        for block in self.transformer.blocks:
            if not block.boundary:  # the reference's last block ends with its keys and values
                continue
            piece = self.piece(block, before)
            isolated = self._in_isolation(piece, run, block, before)
            accumulated = piece.run({**inputs, **accumulated})
            for part, value in block.boundary.items():
                if run.has(name := f"block{block.index}.{part}"):
                    expected = run.read(name)
                    yield BlockError(
                        block.index,
                        part,
                        run,
                        tensor_distance(accumulated[value], expected),
                        None if isolated is None else tensor_distance(isolated[value], expected),
                    )
            before = block.boundary

    def piece(self, block: Block, before: Mapping[str, str]) -> Piece:
        """What computes a block's boundary from the one before."""
        piece = self._pieces.get(block.index)
        if piece is None:
            piece = self.network.cut(tuple(block.boundary.values()), set(before.values()))
            if self._keep:
                self._pieces[block.index] = piece
        return piece

    def _in_isolation(
        self, piece: Piece, run: RecordedRun, block: Block, before: Mapping[str, str]
    ) -> dict[str, np.ndarray] | None:
        """What the block makes of what entered the reference's; ``None`` for the first, whose inputs are the same."""
        names = {
            value: f"{entering_name(block.index)}.{part}" for part, value in before.items() if value in piece.inputs
        }
        if not names or not run.has(*names.values()):
            return None
        return piece.run({**run.case.inputs, **{value: run.read(name) for value, name in names.items()}})


def block_errors(bundle: Bundle, stage: Stage, graph: Graph, runs: Sequence[RecordedRun]) -> list[BlockError]:
    """Every recorded boundary of a stage, run by run in the order of blocks; none for stages without blocks."""
    if stage not in STEPPED or not any(run.has_blocks for run in runs):
        return []
    errors: list[BlockError] = []
    compared = BlockErrors(bundle, stage, graph)
    for run in runs:
        errors += compared.of(run)
        run.forget()
    return errors
