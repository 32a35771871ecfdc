"""The Core ML backend: the system's own framework on a Mac, the interpreter everywhere else.

The framework's side was written after coremltools' documentation and never run: no Mac was at hand (docs/coreml.md).
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from livemoments.bundle import Bundle
from livemoments.coreml.names import feature_name, function_name, packages_of, parse_slice
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.manifest import Graph
from livemoments.runtime.backends.base import BATCH_AXIS, Array, Backend, Engine, batch_axis, to_host
from livemoments.types import Size, Stage, TensorSpec

Values = dict[str, np.ndarray]

TARGET = "coreml"
"""What a bundle's manifest says of its packages."""
INTERPRETER = "interpreter"
UNITS = {"gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "all": "ALL", "cpu-only": "CPU_ONLY"}
"""Our names of Core ML's compute units. The Neural Engine is never chosen unasked: where it does not compile a program,
the process is killed at its first prediction (apple/coremltools issue 2758)."""
_DEFAULT = "cpu"
"""What RestoreOptions say where nobody chose: the GPU of a Mac, and the interpreter elsewhere."""


class Program(Protocol):
    """One package, opened by whatever runs it."""

    inputs: tuple[str, ...]
    """Its inputs' names, which are features."""

    def run(self, values: Values) -> Values:
        """Compute the outputs."""

    def placement(self) -> dict[str, int]:
        """How many operators the system means to run on each device; empty where there is no such plan."""


class CoreMlBackend(Backend):
    """Opens a bundle's packages.

    Args:
        provider: ``interpreter``; on a Mac also ``gpu``, ``ane``, ``all`` and ``cpu-only``. ``cpu`` is the default: the
            GPU on a Mac, and elsewhere the interpreter.

    Raises:
        UsageError: there is no such provider on this system.
    """

    name = TARGET

    def __init__(self, provider: str = _DEFAULT) -> None:
        is_mac = platform.system() == "Darwin"
        found = ("gpu" if is_mac else INTERPRETER) if provider == _DEFAULT else provider
        known = (INTERPRETER, *UNITS) if is_mac else (INTERPRETER,)
        if found not in known:
            raise UsageError(
                f"a bundle of Core ML packages has no provider '{provider}' on this system",
                fix=f"use {', '.join(known)}",
            )
        self.provider = found

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> CoreMlEngine:
        """See :meth:`Backend.open`."""
        return self.open_files(bundle.path, stage, bundle.graph(stage, size))

    def open_files(self, folder: Path, stage: Stage, graph: Graph) -> CoreMlEngine:
        """The same for a graph whose bundle is still being written.

        Args:
            folder: what the graph's paths are relative to.
            stage: the stage.
            graph: its entry for the manifest.
        """
        paths = packages_of(folder, (graph.path, *graph.weights))
        programs = [self._program(path, function_name(graph.size)) for path in paths]
        if not programs:
            raise EngineError(f"{folder}: stage '{stage}' has no Core ML package", fix="export the bundle again")
        return CoreMlEngine(stage, graph.inputs, graph.outputs, programs)

    def _program(self, path: Path, function: str) -> Program:
        try:
            if self.provider == INTERPRETER:
                return _Interpreted(path, function)
            return _Predicted(path, function, UNITS[self.provider])
        except ModuleNotFoundError as error:
            raise MissingExtraError("a bundle of Core ML packages", "coreml", missing=error.name) from None


class CoreMlEngine(Engine):
    """The packages of one graph, run one after the other, tile by tile: each holds a batch of one.

    Args:
        stage: the stage.
        inputs: from the manifest.
        outputs: from the manifest.
        programs: what one package leaves the next may take, by its name.
    """

    def __init__(
        self,
        stage: Stage,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        programs: list[Program],
    ) -> None:
        super().__init__(stage, inputs, outputs)
        self._programs = programs

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        arrays = {spec.name: to_host(inputs[spec.name]) for spec in self.inputs}
        batched = next(spec for spec in self.inputs if BATCH_AXIS in spec.shape)
        tiles = arrays[batched.name].shape[batch_axis(batched)]
        answers = [self._run_tile(arrays, tile) for tile in range(tiles)]
        return {
            spec.name: np.concatenate([answer[spec.name] for answer in answers], axis=batch_axis(spec))
            for spec in self.outputs
        }

    def _run_tile(self, arrays: Values, tile: int) -> Values:
        values = {feature_name(spec.name): _of_tile(arrays[spec.name], spec, tile) for spec in self.inputs}
        for program in self._programs:
            values |= program.run({name: self._find(name, values) for name in program.inputs})
        missing = [spec.name for spec in self.outputs if feature_name(spec.name) not in values]
        if missing:
            raise EngineError(f"stage '{self.stage}': no package makes '{missing[0]}'", fix="export the bundle again")
        return {spec.name: values[feature_name(spec.name)].astype(spec.dtype, copy=False) for spec in self.outputs}

    def _find(self, name: str, values: Values) -> np.ndarray:
        if name in values:
            return values[name]
        part = parse_slice(name)
        if part is None or part[0] not in values:
            raise EngineError(f"stage '{self.stage}': nothing makes '{name}'", fix="export the bundle again")
        return np.ascontiguousarray(values[part[0]][part[1] : part[2]])

    def placement(self) -> dict[str, int]:
        """How many operators the system means to run on each device, all packages together; empty off the Mac."""
        return dict(sum((Counter(program.placement()) for program in self._programs), Counter()))

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        super().close()
        self._programs = []


def _of_tile(array: np.ndarray, spec: TensorSpec, tile: int) -> np.ndarray:
    """One tile's part; the step, a scalar, as Core ML takes it: (1,) int32."""
    if spec.dtype == "int64":
        return array.reshape(-1).astype(np.int32)
    if BATCH_AXIS not in spec.shape:
        return array
    return np.ascontiguousarray(np.take(array, [tile], axis=batch_axis(spec)))


class _Interpreted:
    """A package that the interpreter runs; ``function`` where it serves several sizes."""

    def __init__(self, path: Path, function: str) -> None:
        from livemoments.coreml.interpreter import Interpreter
        from livemoments.coreml.package import Package

        package = Package.open(path)
        self._interpreter = Interpreter(package, package.function_for(function).name)
        self.inputs = tuple(variable.name for variable in self._interpreter.function.inputs)

    def run(self, values: Values) -> Values:
        return self._interpreter.run(values)

    def placement(self) -> dict[str, int]:
        return {}


class _Predicted:
    """A package that the system's framework runs, on a Mac; ``function`` where it serves several sizes."""

    def __init__(self, path: Path, function: str, units: str) -> None:
        import coremltools

        from livemoments.coreml.package import Package

        found = Package.open(path)
        chosen = found.function_for(function)
        extra = {"function_name": chosen.name} if len(found.functions) > 1 else {}
        try:
            self._model: Any = coremltools.models.MLModel(
                str(path), compute_units=coremltools.ComputeUnit[units], **extra
            )
        except Exception as error:  # the framework's errors come as they are
            raise EngineError(f"{path}: Core ML does not load the package ({error})") from error
        self.inputs = tuple(variable.name for variable in chosen.inputs)
        self._path, self._function = path, chosen.name

    def run(self, values: Values) -> Values:
        try:
            found = self._model.predict(values)
        except Exception as error:
            raise EngineError(f"{self._path}: Core ML failed ({error})") from error
        return {name: np.asarray(value) for name, value in found.items()}

    def placement(self) -> dict[str, int]:
        from livemoments.coreml.placement import find_placement

        try:
            return find_placement(self._model, self._function)
        except Exception as error:  # as above; systems before macOS 14.4 have no plan
            raise EngineError(f"{self._path}: Core ML gives no compute plan ({error})") from error
