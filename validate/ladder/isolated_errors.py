"""The error of each comparable on its own, and which node makes it."""

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
from livemoments.validate.ladder.comparable_values import ComparableValue, find_comparable_values, parts_on_the_way
from livemoments.validate.ladder.expected_values import ExpectedValue
from livemoments.validate.ladder.modules import PRODUCTS
from livemoments.validate.ladder.recorded_runs import RecordedRun
from livemoments.validate.ladder.tensor_distance import Distance, tensor_distance

_GROUP_BYTES = 1 << 29
"""What values that are computed at once are given."""
_BYTES_UNKNOWN = 1 << 26
"""For a value whose shape the graph does not say."""
_MOST_PRODUCTS = 32
"""What spans more (the iterations of the flow network) says no more than the whole network's error."""
_KEPT_WEIGHTS_BYTES = 1 << 28
"""Pieces of smaller networks stay loaded from one pass to the next."""
_SAME_ROW = 1e-2
"""A difference that varies less than this from token to token is a bias."""
_NUMBERS = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN", "BFLOAT16")
)


@dataclass(frozen=True, slots=True)
class IsolatedError:
    """One comparable in one pass; ``distance`` with everything before it as the reference has it."""

    comparable: ComparableValue
    given: RecordedRun
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
    """Which node makes a comparable's error.

    Attributes:
        node: its index.
        output: the value that it gives.
        remaining: indices of all the nodes between what is known to be right and what is known to be wrong.
    """

    node: int
    output: str
    remaining: tuple[int, ...]


class IsolatedErrors:
    """Compares the values of one stage's graph. A context manager that closes the pieces it holds.

    Args:
        bundle: whose.
        stage: which.
        graph: the stage's, for the recording's tile size.
        limits: ``module_rel_l2`` for what multiplies with weights, ``exact_rel_l2`` for all else, the stage's for what
            spans several modules.
    """

    def __init__(self, bundle: Bundle, stage: Stage, graph: Graph, limits: PrecisionLimits) -> None:
        self.network = Network(bundle.path / graph.path)
        outputs = [spec.name for spec in graph.outputs]
        self.map = find_comparable_values(self.network, stage, outputs, smoothed=bundle.manifest.may_be_smoothed)
        self._stage = stage
        self._heads = bundle.manifest.model.num_heads
        self._limits = limits
        self._widen = self.network.is_half
        weights_bytes = sum(bundle.manifest.files[name].bytes for name in graph.weights)
        self._keep = weights_bytes <= _KEPT_WEIGHTS_BYTES
        self._pieces: dict[tuple[str, ...], Piece] = {}

    def __enter__(self) -> IsolatedErrors:
        return self

    def __exit__(self, *_: object) -> None:
        self._pieces.clear()

    @property
    def places(self) -> dict[str, int]:
        """Every comparable's place in the graph's order."""
        return {value: self.network.maker(value) or 0 for value in self.map.values}

    def module_of(self, node: int) -> str | None:
        """The checkpoint's module whose product a node is."""
        modules = self.map.modules.values()
        return next((module.name for module in modules if module.product == node), None)

    def bad_tables(self, given: RecordedRun) -> tuple[int, int]:
        """How many AdaLN tables give wrong rows in a pass, and how many could be compared."""
        known = self.map.known(given)
        values = tuple(value for value in self.map.tables if value in known)
        errors = list(self._errors(values, given, known)) if values else []
        return sum(error.is_bad for error in errors), len(errors)

    def of(self, given: RecordedRun, *, block: str | None = None) -> Iterator[IsolatedError]:
        """The values of a pass: before the first block, block by block, behind the last; each in the graph's order.

        Args:
            given: the pass.
            block: only those of one block, e.g. ``transformer_blocks.3``.
        """
        known = self.map.known(given)
        for group in self._groups(known):
            if block is None or self.map.values[group[0]].block == block:
                yield from self._errors(group, given, known)

    def find_faulty_node(self, error: IsolatedError) -> FaultyNode:
        """The node at fault: the first between what is right and what is wrong, or the product among them."""
        comparable, given = error.comparable, error.given
        known = set(self.map.known(given)) - {comparable.value}
        cone = self.network.cone([comparable.value], known)
        stops = known | self._recognised(comparable, given, known, cone, error.limit)
        remaining = self.network.cone([comparable.value], stops)
        nodes = self.network.nodes
        floats = [index for index in remaining if self.network.is_float(nodes[index].output[0])] or remaining
        products = [index for index in remaining if self._multiplies_weights(index)]
        chosen = products[0] if len(products) == 1 else floats[0]
        if len(products) == 1 and self._is_bias_wrong(comparable, given, floats[-1]):
            chosen = floats[-1]
        return FaultyNode(chosen, nodes[chosen].output[0], tuple(remaining))

    def _groups(self, known: Mapping[str, ExpectedValue]) -> Iterator[tuple[str, ...]]:
        """Landmarks to compute at once: of one block, as many as the budget for what they are given allows."""
        group: list[str] = []
        held, block = 0, None
        for value in known:
            if self._products(self.network.cone([value], set(known) - {value})) > _MOST_PRODUCTS:
                continue
            of = self.map.values[value].block
            size = _BYTES_UNKNOWN if (count := self.network.elements(value)) is None else 4 * count
            if group and (of != block or held + size > _GROUP_BYTES):
                yield tuple(group)
                group, held = [], 0
            group.append(value)
            held, block = held + size, of
        if group:
            yield tuple(group)

    def _errors(
        self, group: tuple[str, ...], given: RecordedRun, known: Mapping[str, ExpectedValue]
    ) -> Iterator[IsolatedError]:
        piece = self._pieces.get(group)
        if piece is None:
            piece = self.network.cut_apart(group, known.keys(), widen=self._widen)
            if self._keep:
                self._pieces[group] = piece
        got = piece.run(self._feeds(piece, given, known))
        for value in group:
            comparable = self.map.values[value]
            distance = _compare(got.pop(value), known[value].make(given))
            yield IsolatedError(comparable, given, distance, self._limit(comparable, set(known) - {value}))

    def _feeds(self, piece: Piece, given: RecordedRun, known: Mapping[str, ExpectedValue]) -> dict[str, np.ndarray]:
        inputs = given.case.inputs
        return {name: known[name].make(given) if name in known else inputs[name] for name in piece.inputs}

    def _run(self, outputs: Sequence[str], given: RecordedRun, stops: set[str]) -> dict[str, np.ndarray]:
        with self.network.cut(outputs, stops, widen=self._widen) as piece:
            return piece.run(self._feeds(piece, given, self.map.known(given)))

    def _limit(self, comparable: ComparableValue, stops: set[str]) -> float:
        cone = self.network.cone([comparable.value], stops)
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

    def _recognised(
        self, comparable: ComparableValue, given: RecordedRun, known: set[str], cone: list[int], limit: float
    ) -> set[str]:
        """The values on the way to a comparable that are what they should be, by what may be found there."""
        ways = {
            name: way
            for name, way in parts_on_the_way(comparable, self.map, self._stage, self._heads).items()
            if way.is_there(given)
        }
        nodes = self.network.nodes
        inner = [name for index in cone for name in nodes[index].output if name and name != comparable.value]
        inner = [name for name in inner if self.network.is_float(name) and name not in known]
        if not inner or not ways:
            return set()
        found: set[str] = set()
        wanted = [way.make(given) for way in ways.values()]
        got = self._run(inner, given, known)
        for name, value in got.items():
            if any(value.shape == want.shape and tensor_distance(value, want).rel_l2 <= limit for want in wanted):
                found.add(name)
        return found

    def _is_bias_wrong(self, comparable: ComparableValue, given: RecordedRun, last: int) -> bool:
        """Whether the last node adds a bias and the error is the same for every token (or pixel)."""
        node = self.network.nodes[last]
        if node.op_type not in ("Add", "Sub") or not any(name.endswith(".bias") for name in node.input):
            return False
        known = self.map.known(given)
        want = known[comparable.value].make(given)
        got = self._run([comparable.value], given, set(known) - {comparable.value})[comparable.value]
        difference = got.reshape(want.shape) - want
        tokens = difference.reshape(-1, difference.shape[-1])
        varying = float(np.linalg.norm(tokens - tokens.mean(axis=0)))
        return varying <= _SAME_ROW * float(np.linalg.norm(tokens))


def _compare(got: np.ndarray, want: np.ndarray) -> Distance:
    """Distance of a computed value; shapes may differ by axes of length 1 (rows of tables have no batch)."""
    same = tuple(n for n in got.shape if n != 1) == tuple(n for n in want.shape if n != 1)
    return tensor_distance(got.reshape(want.shape) if same else got, want)
