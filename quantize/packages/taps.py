"""A back-end for bundles of Core ML packages whose transformers show what enters their linears, by the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from livemoments.bundle import Bundle
from livemoments.coreml.backend import INTERPRETER, CoreMlBackend, CoreMlEngine, Program, Values
from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.names import function_name, packages_of
from livemoments.coreml.package import Package
from livemoments.coreml.program import Function, Operation, Variable
from livemoments.export.coreml.modules import STEP
from livemoments.graphs.linears import LinearId
from livemoments.graphs.segments import Tap
from livemoments.graphs.taps import TAPPED_STAGES, Listener
from livemoments.quantize.packages.linears import find_linears
from livemoments.runtime.backends.base import Backend, Engine
from livemoments.types import Size, Stage


class TappedPackages(Backend):
    """Opens the transformers with taps.

    Args:
        listener: gets every activation; what it raises ends the run.
    """

    name = "coreml with taps"
    provider = INTERPRETER

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._plain = CoreMlBackend(INTERPRETER)

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        """See :meth:`Backend.open`."""
        if stage not in TAPPED_STAGES:
            return self._plain.open(bundle, stage, size)
        graph = bundle.graph(stage, size)
        packages = packages_of(bundle.path, (graph.path, *graph.weights))
        programs: list[Program] = [
            _Tapped(path, function_name(graph.size), str(stage), self._listener) for path in packages
        ]
        return CoreMlEngine(stage, graph.inputs, graph.outputs, programs)


class _Tapped:
    """A package that tells the listener what enters its linears."""

    def __init__(self, path: Path, size_function: str, stage: str, listener: Listener) -> None:
        package = Package.open(path)
        function = package.function_for(size_function)
        self._interpreter = Interpreter(package, function.name)
        self._taps = _find_taps(function, stage)
        self._listener = listener
        self.inputs = tuple(variable.name for variable in function.inputs)

    def run(self, values: Values) -> Values:
        point = int(values[STEP].item())

        def observe(_: Operation, variable: Variable, value: Tensor) -> None:
            if variable.name in self._taps:
                self._listener(self._taps[variable.name], point, value.float().numpy())

        return self._interpreter.run(values, observe=observe)

    def placement(self) -> dict[str, int]:
        return {}


def _find_taps(function: Function, stage: str) -> dict[str, Tap]:
    """By the variable's name."""
    feeds: dict[str, list[LinearId]] = {}
    shapes = {variable.name: variable.type.shape for op in function.operations for variable in op.outputs}
    for linear in find_linears(function, stage):
        feeds.setdefault(linear.input_value, []).append(linear.id)
    return {
        name: Tap(name, tuple(linears), shapes[name][-1] or 0, int(np.prod([axis or 0 for axis in shapes[name]])))
        for name, linears in feeds.items()
    }
