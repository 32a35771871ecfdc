"""Runs an ML Program operator by operator: its semantics, with the roundings that its types declare.

What it answers is what the program says, not what Apple's kernels make of it: every operator computes in float32, and
what it makes is rounded to the type that the program declares for it (float16 storage, float32 sums). Apple's kernels
may sum in float16, fuse operators and round more or less often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from livemoments.coreml.kernels import compressed, elementwise, images, products, reductions, shapes
from livemoments.coreml.kernels.registry import KERNELS, MOVING, TORCH_DTYPES, Arguments, Bound, Result, to_torch
from livemoments.coreml.package import Package
from livemoments.coreml.program import FLOATS, Constant, Function, Operation, ValueType, Variable
from livemoments.errors import EngineError

Precision: TypeAlias = Literal["declared", "float32", "float64"]
"""``declared``: as the program says. The others compute everything in one type and round nothing in between: what is
left of a difference then is a wrong operator."""
Observer: TypeAlias = Callable[[Operation, Variable, Tensor], None]

FAMILIES = (compressed, elementwise, images, products, reductions, shapes)
"""The modules whose import fills :data:`KERNELS`."""
_STATES = frozenset({"read_state", "write_state"})
_KEPT_BYTES = 1 << 30
"""Decompressed constants are kept for the next run up to this size; beyond it they are computed anew at every run."""


@dataclass(slots=True)
class States:
    """What a function with states keeps between its runs, by name; zeros at first."""

    tensors: dict[str, Tensor] = field(default_factory=dict)


class Interpreter:
    """One function of a package, ready to run.

    Args:
        package: the opened package.
        function: its name; ``None`` is the package's default.
        precision: see :data:`Precision`.

    Raises:
        EngineError: there is no such function; an operator is not known, or what it reads is made nowhere.
    """

    def __init__(self, package: Package, function: str | None = None, *, precision: Precision = "declared") -> None:
        name = function or package.default
        if name not in package.functions:
            raise EngineError(f"{package.path}: there is no function '{name}'; it has {', '.join(package.functions)}")
        self.function: Function = package.functions[name]
        self._what = str(package.path)
        self._rounds = precision == "declared"
        self._compute = torch.float64 if precision == "float64" else torch.float32
        self._constants: dict[str, Constant] = {}
        self._operations = [operation for operation in self.function.operations if not self._is_constant(operation)]
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        self._kept_bytes = 0
        self._last_use = self._check()

    def run(
        self, inputs: Mapping[str, np.ndarray], *, states: States | None = None, observe: Observer | None = None
    ) -> dict[str, np.ndarray]:
        """Run the function once.

        Args:
            inputs: one array for every input; floats are converted to the input's type, integers must fit it.
            states: what is kept between runs, read and written; ``None`` starts from zeros.
            observe: called with each operator, output and value as it is made, in the type it is held in.

        Returns:
            Every output, in the program's types (floats in the computing type where nothing is rounded).

        Raises:
            EngineError: an input does not fit; an operator makes something else than the program says.
        """
        values = self._take_inputs(inputs)
        kept = states or States()
        with torch.inference_mode():
            for position, operation in enumerate(self._operations):
                found = self._make(operation, values, kept)
                for variable, value in zip(operation.outputs, found, strict=True):
                    values[variable.name] = value
                    if observe is not None:
                        observe(operation, variable, value)
                for name in self._last_use[position]:
                    values.pop(name, None)
            return {name: self._output(name, values) for name in self.function.outputs}

    def _is_constant(self, operation: Operation) -> bool:
        if operation.kind != "const":
            return False
        (value,) = operation.inputs["val"]
        if not isinstance(value, Constant):
            raise EngineError(f"{self._what}: constant '{operation.name}' has no value")
        self._constants[operation.name] = value
        return True

    def _check(self) -> list[list[str]]:
        """Hold that every operator is known and every name is made before it is read.

        Returns:
            For each operator the variables that nothing reads after it.
        """
        made = {variable.name for variable in (*self.function.inputs, *self.function.states)} | set(self._constants)
        last: dict[str, int] = {}
        for position, operation in enumerate(self._operations):
            if operation.kind not in KERNELS and operation.kind not in _STATES:
                raise EngineError(
                    f"{self._what}: operator '{operation.kind}' (makes '{operation.name}') is not interpreted",
                    fix="run the package on a Mac, or add a kernel to livemoments/coreml/kernels",
                )
            for name in (item for bound in operation.inputs.values() for item in bound if isinstance(item, str)):
                if name not in made:
                    raise EngineError(
                        f"{self._what}: operator '{operation.kind}' (makes '{operation.name}') reads '{name}', "
                        "which nothing makes before it"
                    )
                last[name] = position
            for variable in operation.outputs:
                made.add(variable.name)
                last.setdefault(variable.name, position)
        free: list[list[str]] = [[] for _ in self._operations]
        for name, position in last.items():
            if name not in self.function.outputs:
                free[position].append(name)
        if missing := [name for name in self.function.outputs if name not in made]:
            raise EngineError(f"{self._what}: nothing makes the output '{missing[0]}'")
        return free

    def _take_inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        wanted = {variable.name: variable.type for variable in self.function.inputs}
        if set(inputs) != set(wanted):
            raise EngineError(f"{self._what}: inputs are {', '.join(wanted)}, got {', '.join(inputs)}")
        values = {}
        for name, expected in wanted.items():
            array = np.asarray(inputs[name])
            is_float = array.dtype.kind == "f"
            if not expected.accepts(array.shape) or is_float != (expected.dtype in FLOATS):
                raise EngineError(f"{self._what}: input '{name}' is {expected}, got {array.dtype} {array.shape}")
            if not is_float and not np.array_equal(array.astype(expected.dtype), array):
                raise EngineError(f"{self._what}: input '{name}' holds numbers that are no {expected.dtype}")
            values[name] = self._held(torch.from_numpy(np.require(array, requirements=("C", "W"))), expected)
        return values

    def _make(self, operation: Operation, values: Mapping[str, Tensor], states: States) -> tuple[Tensor, ...]:
        if operation.name in self._kept:
            return self._kept[operation.name]
        if operation.kind in _STATES:
            return self._use_state(operation, values, states)
        wide = operation.kind not in MOVING
        arguments = Arguments(
            operation,
            {
                key: tuple(self._value(item, values, wide=wide) for item in items)
                for key, items in operation.inputs.items()
            },
        )
        try:
            result: Result = KERNELS[operation.kind](arguments)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:  # what torch makes of what does not fit
            raise arguments.refuse(str(error).splitlines()[0]) from error
        arguments.check_all_read()
        found = result if isinstance(result, tuple) else (result,)
        if len(found) != len(operation.outputs):
            raise arguments.refuse(f"makes {len(found)} values, the program says {len(operation.outputs)}")
        checked = tuple(
            self._checked(value, variable.type, arguments)
            for value, variable in zip(found, operation.outputs, strict=True)
        )
        if operation.kind.startswith(compressed.CONSTEXPR):
            self._keep(operation.name, checked)
        return checked

    def _keep(self, name: str, found: tuple[Tensor, ...]) -> None:
        size = sum(value.nbytes for value in found)
        if self._kept_bytes + size <= _KEPT_BYTES:
            self._kept[name] = found
            self._kept_bytes += size

    def _use_state(self, operation: Operation, values: Mapping[str, Tensor], states: States) -> tuple[Tensor, ...]:
        name = str(operation.inputs["input"][0])
        found = [state.type for state in self.function.states if state.name == name]
        if not found:
            raise Arguments(operation, {}).refuse(f"'{name}' is no state of the function")
        if operation.kind == "write_state":
            arguments = Arguments(
                operation, {"data": tuple(self._value(item, values, wide=False) for item in operation.inputs["data"])}
            )
            states.tensors[name] = self._checked(arguments.tensor("data"), found[0], arguments)
            return ()
        if name not in states.tensors:
            states.tensors[name] = self._held(torch.zeros([axis or 0 for axis in found[0].shape]), found[0])
        return (states.tensors[name],)

    def _value(self, item: str | Constant, values: Mapping[str, Tensor], *, wide: bool) -> Bound:
        """What is bound, floats in the computing type if ``wide``, else as they are held."""
        if isinstance(item, str) and item in values:
            value = values[item]
        else:
            constant = self._constants[item] if isinstance(item, str) else item
            stored = constant.read()
            if isinstance(stored, str):
                return stored
            value = self._held(to_torch(stored), constant.type)
        return value.to(self._compute) if wide and value.is_floating_point() else value

    def _checked(self, value: Tensor, expected: ValueType, arguments: Arguments) -> Tensor:
        """The value as it is held, rounded to its declared type.

        Raises:
            EngineError: it has another shape, or is of another kind (float, integer, truth value).
        """
        is_float = expected.dtype in FLOATS
        if value.is_floating_point() != is_float or (value.dtype == torch.bool) != (expected.dtype == "bool"):
            raise arguments.refuse(f"makes {value.dtype}, the program says {expected}")
        if not expected.accepts(tuple(value.shape)):
            raise arguments.refuse(f"makes the shape {tuple(value.shape)}, the program says {expected}")
        return self._held(value, expected)

    def _held(self, value: Tensor, expected: ValueType) -> Tensor:
        computed = expected.dtype in FLOATS and not self._rounds
        return value.to(self._compute if computed else TORCH_DTYPES[expected.dtype])

    def _output(self, name: str, values: Mapping[str, Tensor]) -> np.ndarray:
        value = self._value(name, values, wide=False)
        if isinstance(value, str):
            raise EngineError(f"{self._what}: the output '{name}' is a text")
        return np.ascontiguousarray(value.numpy()).reshape(value.shape)
