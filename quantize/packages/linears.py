"""The linears of Core ML packages: their ``linear`` operators, by the checkpoint's names of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from livemoments.bundle import Bundle
from livemoments.coreml.names import feature_name, packages_of
from livemoments.coreml.package import Package
from livemoments.coreml.program import Function, Operation, ValueType
from livemoments.graphs.linears import Linear, LinearId
from livemoments.graphs.taps import TAPPED_STAGES
from livemoments.types import Stage

_PREFIX = "p_network_"
"""What torch.export puts before the names of a transformer's weights."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PackageLinear:
    """A ``linear`` operator.

    Attributes:
        id: stage and weight; dots are underscores here: ``restoration/transformer_blocks_3_attn_to_q_weight``.
        constant: the weight's name in the program.
        input_value: the variable that enters it, (..., in_features).
        weight: the weight's type; its shape is (out_features, in_features).
    """

    id: LinearId
    constant: str
    input_value: str
    weight: ValueType

    def described(self) -> Linear:
        """The same in the terms of graphs, for recipes."""
        outputs, inputs = self.weight.shape
        return Linear(self.id, self.input_value, inputs or 0, outputs or 0, None, self.id.weight)


def find_linears(function: Function, stage: str) -> list[PackageLinear]:
    """Every ``linear`` with a stored weight of floats whose input is computed, in the program's order."""
    constants = {op.name: op.outputs[0].type for op in function.operations if op.kind == "const"}
    return [
        PackageLinear(LinearId(stage, weight.removeprefix(_PREFIX)), weight, data, constants[weight])
        for _, data, weight in products(function)
        if weight in constants and data not in constants
    ]


def products(function: Function) -> Iterator[tuple[Operation, str, str]]:
    """Every ``linear``: the operator, its input and its weight, by name."""
    for operation in function.operations:
        if operation.kind == "linear":
            (data,), (weight,) = operation.inputs["x"], operation.inputs["weight"]
            if isinstance(data, str) and isinstance(weight, str):
                yield operation, data, weight


def stage_packages(bundle: Bundle, stage: Stage) -> list[Path]:
    """Every package of a stage once, in the order of its graphs."""
    graphs = bundle.stage(stage).graphs
    return list(dict.fromkeys(path for g in graphs for path in packages_of(bundle.path, (g.path, *g.weights))))


def bundle_linears(bundle: Bundle) -> list[Linear]:
    """The linears of both transformers; those of several sizes' functions once."""
    found: dict[LinearId, Linear] = {}
    for stage in TAPPED_STAGES:
        if str(stage) in bundle.manifest.stages:
            for path in stage_packages(bundle, stage):
                package = Package.open(path)
                for linear in find_linears(package.functions[package.default], str(stage)):
                    found.setdefault(linear.id, linear.described())
    return list(found.values())


def named_as_in_packages(stats: Mapping[LinearId, T]) -> dict[LinearId, T]:
    """Calibration's statistics by the names in packages, whichever kind of bundle they were made with."""
    return {LinearId(linear.stage, feature_name(linear.weight)): value for linear, value in stats.items()}
