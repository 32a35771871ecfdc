"""An ML Program as data: functions of typed operators, as a package stores them.

Element types have numpy's names; below a byte they are ``int4`` and ``uint1`` to ``uint6``, held one a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

FLOATS = frozenset({"float16", "float32"})
BITS = {
    "bool": 8,
    "float16": 16,
    "float32": 32,
    "int4": 4,
    "int8": 8,
    "int16": 16,
    "int32": 32,
    "uint1": 1,
    "uint2": 2,
    "uint3": 3,
    "uint4": 4,
    "uint6": 6,
    "uint8": 8,
    "uint16": 16,
    "uint32": 32,
}
"""Width of an element in the file. ``string`` has none."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """Type of a value: element type and shape; an axis of unknown length is ``None``, a scalar's shape is ()."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join('?' if axis is None else str(axis) for axis in self.shape)})"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(
            want in (None, got) for want, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Variable:
    """A named value: an input, a state or an operator's output."""

    name: str
    type: ValueType


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that the package stores; ``read`` gives it, from the weight file without a copy where it lies there."""

    type: ValueType
    read: Callable[[], np.ndarray | str]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator.

    Attributes:
        kind: its name in MIL, e.g. ``layer_norm``.
        inputs: for each parameter what is bound to it, variables' names or constants; more than one where the operator
            takes a list.
        outputs: what it makes, in order.
    """

    kind: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[Variable, ...]

    @property
    def name(self) -> str:
        """The name of its first output, which identifies it in the program."""
        return self.outputs[0].name if self.outputs else self.kind


@dataclass(frozen=True, slots=True)
class Function:
    """One function: its inputs, the states that it keeps between runs, its operators in order, and its outputs."""

    name: str
    opset: str
    inputs: tuple[Variable, ...]
    states: tuple[Variable, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
