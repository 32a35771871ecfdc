"""How a kernel gets what is bound to its operator, and where kernels are found by the operator's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from livemoments.coreml.program import Operation
from livemoments.errors import EngineError

Bound: TypeAlias = "Tensor | str"
Result: TypeAlias = "Tensor | tuple[Tensor, ...]"


class Arguments:
    """What is bound to one operator's parameters.

    Every reading method takes the parameter's name; a default makes it optional. :meth:`check_all_read` holds that
    nothing that the program says was passed over.

    Args:
        operation: the operator.
        values: for each parameter its values, in order.
    """

    def __init__(self, operation: Operation, values: Mapping[str, tuple[Bound, ...]]) -> None:
        self.operation = operation
        self._values = values
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether anything is bound to an optional parameter."""
        return name in self._values

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        (value,) = self._bound(name)
        if isinstance(value, str):
            raise self.refuse(f"'{name}' is the text '{value}'")
        return value

    def optional(self, name: str) -> Tensor | None:
        """A tensor, or ``None``."""
        return self.tensor(name) if self.has(name) else None

    def tensors(self, name: str) -> list[Tensor]:
        """A list of tensors."""
        values = self._bound(name)
        return [value for value in values if isinstance(value, Tensor)]

    def ints(self, name: str, default: list[int] | None = None) -> list[int]:
        """A vector of integers (one number counts as a vector of one)."""
        if default is not None and not self.has(name):
            return default
        return [int(value) for value in self.tensor(name).reshape(-1).tolist()]

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer."""
        if default is not None and not self.has(name):
            return default
        return int(self.tensor(name))

    def number(self, name: str, default: float | None = None) -> float:
        """A number; a default is rounded as if the program had stored it, in float32."""
        if default is not None and not self.has(name):
            return float(np.float32(default))
        return float(self.tensor(name))

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A truth value."""
        if default is not None and not self.has(name):
            return default
        return bool(self.tensor(name))

    def text(self, name: str) -> str:
        """A text."""
        (value,) = self._bound(name)
        if not isinstance(value, str):
            raise self.refuse(f"'{name}' is not a text")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        """One of the words that this interpreter knows.

        Raises:
            EngineError: the program says another.
        """
        if default is not None and not self.has(name):
            return default
        value = self.text(name)
        if value not in allowed:
            raise self.refuse(f"{name} is '{value}'; known are {', '.join(allowed)}")
        return value

    def ignore(self, *names: str) -> None:
        """Say that parameters do not matter here."""
        self._read.update(names)

    def check_all_read(self) -> None:
        """Refuse an operator of which the kernel left a parameter unread.

        Raises:
            EngineError: naming them.
        """
        if unread := sorted(set(self._values) - self._read):
            raise self.refuse(f"has parameters that are not known: {', '.join(unread)}")

    def refuse(self, why: str) -> EngineError:
        """The error for what this interpreter does not do."""
        return EngineError(f"operator '{self.operation.kind}' (makes '{self.operation.name}'): {why}")

    def _bound(self, name: str) -> tuple[Bound, ...]:
        self._read.add(name)
        try:
            return self._values[name]
        except KeyError:
            raise self.refuse(f"nothing is bound to '{name}'") from None


Kernel: TypeAlias = Callable[[Arguments], Result]
KERNELS: dict[str, Kernel] = {}
"""By the operator's name. Filled by this package's modules, which :mod:`livemoments.coreml.interpreter` imports."""
MOVING: set[str] = set()
"""Operators that only move elements."""


def kernel(name: str, *, moves: bool = False) -> Callable[[Kernel], Kernel]:
    """Register a kernel for an operator.

    Args:
        name: the operator.
        moves: it only moves elements, and so takes them as they are held, float16 not widened.
    """

    def register(function: Kernel) -> Kernel:
        if name in KERNELS:
            raise ValueError(f"two kernels for '{name}'")
        KERNELS[name] = function
        if moves:
            MOVING.add(name)
        return function

    return register


def to_torch(array: np.ndarray) -> Tensor:
    """A stored array as a tensor; unsigned types that torch hardly computes with become wider ones."""
    wider = {"uint16": np.int32, "uint32": np.int64}.get(array.dtype.name)
    return torch.from_numpy(array.astype(wider) if wider is not None else array)


TORCH_DTYPES = {
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "int4": torch.int8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "uint16": torch.int32,
    "uint32": torch.int64,
    **{f"uint{bits}": torch.uint8 for bits in (1, 2, 3, 4, 6, 8)},
}
"""In what a program's types are held."""
