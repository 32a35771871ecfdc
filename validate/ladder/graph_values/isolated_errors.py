"""The error of each comparable value in isolation, and which node makes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.graphs.subgraphs import Network, Piece
from livemoments.limits import PrecisionLimits
from livemoments.manifest import Graph
from livemoments.types import Stage
from livemoments.validate.ladder.graph_values.comparable_values import ComparableValue, find_comparable_values
from livemoments.validate.ladder.graph_values.expected_values import ExpectedValue
from livemoments.validate.ladder.graph_values.modules import PRODUCTS
from livemoments.validate.ladder.recorded_runs import RecordedRun
from livemoments.validate.ladder.tensor_distance import Distance, tensor_distance

KEPT_WEIGHTS_BYTES = 1 << 28
"""Pieces of smaller networks stay loaded from one run to the next."""
_GROUP_BYTES = 1 << 29
"""What values that are computed at once are given."""
_BYTES_UNKNOWN = 1 << 26
"""For a value whose shape the graph does not say."""
_MOST_PRODUCTS = 32
"""What spans more (the iterations of the flow network) says no more than the whole network's error."""
_SAME_ROW = 1e-2
"""A difference that varies less than this from token to token is a bias."""
_NUMBERS = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "BFLOAT16")
)


@dataclass(frozen=True, slots=True)
class IsolatedError:
    """One value in one run; ``distance`` with everything before it as the reference has it."""

    value: ComparableValue
    run: RecordedRun
    distance: Distance
    limit: float

    @property
    def is_bad(self) -> bool:
        """Whether it is past its limit; NaN always is."""
        return not self.distance.rel_l2 <= self.limit

    @property
    def ratio(self) -> float:
        """Error over limit; infinite for NaN."""
        ratio = self.distance.rel_l2 / self.limit
        return float("inf") if np.isnan(ratio) else ratio


@dataclass(frozen=True, slots=True)
class FaultyNode:
    """Which node makes a value's error.

    Attributes:
        index: the node's.
        output: the value that it gives.
        remaining: indices of all the nodes between what is known to be right and what is known to be wrong.
    """

    index: int
    output: str
    remaining: tuple[int, ...]


class IsolatedErrors:
    """Compares the values of one stage's graph, each fed with the reference's.

    Args:
        bundle: opened.
        stage: the stage to compare.
        graph: the stage's graph for the recording's tile size.
        limits: ``module_rel_l2`` for what multiplies with weights, ``exact_rel_l2`` for all else, the stage's for what
            spans several modules.
    """

    def __init__(self, bundle: Bundle, stage: Stage, graph: Graph, limits: PrecisionLimits) -> None:
        self.network = Network(bundle.path / graph.path)
        outputs = [spec.name for spec in graph.outputs]
        smoothed = bundle.manifest.may_be_smoothed
        self.values = find_comparable_values(self.network, stage, outputs, smoothed=smoothed)
        self._stage = stage
        self._heads = bundle.manifest.model.num_heads
        self._limits = limits
        self._widen = self.network.is_half
        self._keep = sum(bundle.manifest.files[name].bytes for name in graph.weights) <= KEPT_WEIGHTS_BYTES
        self._pieces: dict[tuple[str, ...], Piece] = {}

    def place(self, error: IsolatedError) -> int:
        """Where in the graph's order the value of an error is."""
        return self.network.maker(error.value.name) or 0

    def module_of(self, node: int) -> str | None:
        """The checkpoint's module whose product a node is."""
        modules = self.values.modules.values()
        return next((module.name for module in modules if module.product == node), None)

    def bad_tables(self, run: RecordedRun) -> tuple[int, int]:
        """How many AdaLN tables give wrong rows in a run, and how many could be compared."""
        known = self.values.known(run)
        tables = tuple(name for name in self.values.tables if name in known)
        errors = list(self._errors(tables, run, known)) if tables else []
        return sum(error.is_bad for error in errors), len(errors)

    def of(self, run: RecordedRun, *, block: str | None = None) -> Iterator[IsolatedError]:
        """The errors in a run: before the first block, block by block, behind the last; each in the graph's order.

        Args:
            run: the recorded run.
            block: only those of one block, e.g. ``transformer_blocks.3``.
        """
        known = self.values.known(run)
        for group in self._groups(known):
            if block is None or self.values.by_name[group[0]].block == block:
                yield from self._errors(group, run, known)

    def find_faulty_node(self, error: IsolatedError) -> FaultyNode:
        """The node at fault: the first between what is right and what is wrong, or the product among them."""
        name, run = error.value.name, error.run
        known = set(self.values.known(run)) - {name}
        remaining = self.network.cone([name], known | self._recognised(error, known))
        nodes = self.network.nodes
        floats = [index for index in remaining if self.network.is_float(nodes[index].output[0])] or remaining
        products = [index for index in remaining if self._multiplies_weights(index)]
        faulty = floats[0]
        if len(products) == 1:
            faulty = floats[-1] if self._is_bias_wrong(error, known, floats[-1]) else products[0]
        return FaultyNode(faulty, nodes[faulty].output[0], tuple(remaining))

    def _groups(self, known: Mapping[str, ExpectedValue]) -> Iterator[tuple[str, ...]]:
        """Values to compute at once: of one block, as many as the budget for what they are given allows."""
        group: list[str] = []
        held, block = 0, None
        for name in known:
            if self._products(self.network.cone([name], set(known) - {name})) > _MOST_PRODUCTS:
                continue
            own_block = self.values.by_name[name].block
            size = _BYTES_UNKNOWN if (count := self.network.elements(name)) is None else 4 * count
            if group and (own_block != block or held + size > _GROUP_BYTES):
                yield tuple(group)
                group, held = [], 0
            group.append(name)
            held, block = held + size, own_block
        if group:
            yield tuple(group)

    def _errors(
        self, group: tuple[str, ...], run: RecordedRun, known: Mapping[str, ExpectedValue]
    ) -> Iterator[IsolatedError]:
        piece = self._pieces.get(group)
        if piece is None:
            piece = self.network.cut_apart(group, known.keys(), widen=self._widen)
            if self._keep:
                self._pieces[group] = piece
        computed = piece.run(self._feeds(piece, run, known))
        for name in group:
            distance = _compare(computed.pop(name), known[name].make(run))
            yield IsolatedError(self.values.by_name[name], run, distance, self._limit(name, set(known) - {name}))

    def _feeds(self, piece: Piece, run: RecordedRun, known: Mapping[str, ExpectedValue]) -> dict[str, np.ndarray]:
        inputs = run.case.inputs
        return {name: known[name].make(run) if name in known else inputs[name] for name in piece.inputs}

    def _compute(self, outputs: Sequence[str], run: RecordedRun, stops: set[str]) -> dict[str, np.ndarray]:
        with self.network.cut(outputs, stops, widen=self._widen) as piece:
            return piece.run(self._feeds(piece, run, self.values.known(run)))

    def _limit(self, name: str, stops: set[str]) -> float:
        cone = self.network.cone([name], stops)
        stage, module = self._limits.stage_rel_l2[str(self._stage)], self._limits.module_rel_l2
        if self._products(cone) > 1:
            limit: float | None = stage
        elif any(self._reads_numbers(index) for index in cone):  # stages that a recipe left alone have tighter limits
            limit = None if module is None else min(module, stage)
        else:
            limit = self._limits.exact_rel_l2
        if limit is None:
            raise UsageError(
                "the file of limits has no module_rel_l2 or exact_rel_l2 for this precision",
                fix="take them from validate/limits.toml",
            )
        return limit

    def _products(self, cone: Sequence[int]) -> int:
        return sum(self._multiplies_weights(index) for index in cone)

    def _multiplies_weights(self, index: int) -> bool:
        node = self.network.nodes[index]
        if node.op_type not in PRODUCTS or node.op_type == "Mul":
            return False
        return any(self.network.is_stored(name) for name in node.input if name)

    def _reads_numbers(self, index: int) -> bool:
        weights = (self.network.weights.get(name) for name in self.network.nodes[index].input)
        return any(
            tensor is not None and tensor.data_type in _NUMBERS and int(np.prod(tensor.dims)) > 1 for tensor in weights
        )

    def _recognised(self, error: IsolatedError, known: set[str]) -> set[str]:
        """The values on the way to a bad one that are what they should be, by what may lie there."""
        run, name = error.run, error.value.name
        parts = [part for part in self.values.on_the_way(error.value, self._stage, self._heads) if part.is_known(run)]
        cone = self.network.cone([name], known)
        inner = [output for index in cone for output in self.network.nodes[index].output if output and output != name]
        inner = [output for output in inner if self.network.is_float(output) and output not in known]
        if not inner or not parts:
            return set()
        expected = [part.make(run) for part in parts]
        return {
            name
            for name, value in self._compute(inner, run, known).items()
            if any(value.shape == one.shape and tensor_distance(value, one).rel_l2 <= error.limit for one in expected)
        }

    def _is_bias_wrong(self, error: IsolatedError, known: set[str], last: int) -> bool:
        """Whether the last node adds a bias and the error is the same for every token (or pixel)."""
        node, name = self.network.nodes[last], error.value.name
        if node.op_type not in ("Add", "Sub") or not any(value.endswith(".bias") for value in node.input):
            return False
        expected = self.values.known(error.run)[name].make(error.run)
        difference = self._compute([name], error.run, known)[name].reshape(expected.shape) - expected
        tokens = difference.reshape(-1, difference.shape[-1])
        varying = float(np.linalg.norm(tokens - tokens.mean(axis=0)))
        return varying <= _SAME_ROW * float(np.linalg.norm(tokens))


def _compare(value: np.ndarray, expected: np.ndarray) -> Distance:
    """Distance of a computed value; shapes may differ by axes of length 1 (rows of tables have no batch)."""
    same = tuple(n for n in value.shape if n != 1) == tuple(n for n in expected.shape if n != 1)
    return tensor_distance(value.reshape(expected.shape) if same else value, expected)
