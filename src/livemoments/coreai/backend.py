"""The Core AI backend: Apple's own runtime, which brings an interpreter for other systems than macOS 27.

On macOS 27 the same calls go to the system's framework: written after the library's documentation and never run, for no
such Mac was at hand (docs/coreai.md).
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import platform
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from livemoments.bundle import Bundle
from livemoments.coreai.names import ENTRY, FUNCTION, PACKAGE, TARGET
from livemoments.coreml.backend import CoreMlEngine, Values
from livemoments.coreml.names import packages_of
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.manifest import Graph
from livemoments.runtime.backends.base import Backend
from livemoments.types import Size, Stage

INTERPRETER = "interpreter"
SYSTEM = "system"
_DEFAULT = "cpu"
"""What RestoreOptions say where nobody chose: what the library runs packages with on this system."""
_SETTLE_S = 1.0
_Answer = TypeVar("_Answer")


class CoreAiBackend(Backend):
    """Opens a bundle's packages.

    Args:
        provider: ``cpu``, the default: whatever the library runs packages with here. By name: ``interpreter``, and on a
            Mac ``system``, its framework.

    Raises:
        UsageError: there is no such provider on this system.
    """

    name = TARGET

    def __init__(self, provider: str = _DEFAULT) -> None:
        own = SYSTEM if platform.system() == "Darwin" else INTERPRETER
        found = own if provider == _DEFAULT else provider
        if found != own:
            raise UsageError(
                f"a bundle of Core AI packages has no provider '{provider}' on this system", fix=f"use {own}"
            )
        self.provider = found

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> CoreAiEngine:
        """See :meth:`Backend.open`."""
        return self.open_files(bundle.path, stage, bundle.graph(stage, size))

    def open_files(self, folder: Path, stage: Stage, graph: Graph) -> CoreAiEngine:
        """The same for a graph whose bundle is still being written.

        Args:
            folder: what the graph's paths are relative to.
            stage: the stage.
            graph: its entry for the manifest.
        """
        paths = packages_of(folder, (graph.path, *graph.weights), f"{PACKAGE}/{ENTRY}")
        if not paths:
            raise EngineError(f"{folder}: stage '{stage}' has no Core AI package", fix="export the bundle again")
        return CoreAiEngine(stage, graph.inputs, graph.outputs, [LoadedPackage(path) for path in paths])


class CoreAiEngine(CoreMlEngine):
    """The package of one graph, run tile by tile: it holds a batch of one, as a Core ML package does."""

    def close(self) -> None:
        """See :meth:`Engine.close`."""
        for program in self._programs:
            assert isinstance(program, LoadedPackage)
            program.close()
        super().close()


class LoadedPackage:
    """One package, opened by Apple's runtime.

    Args:
        path: the ``.aimodel`` folder.

    Raises:
        MissingExtraError: the extra ``coreai`` is not installed.
        EngineError: the runtime does not take the package.
    """

    def __init__(self, path: Path) -> None:
        try:
            from coreai.authoring import AIModelAsset
        except ModuleNotFoundError as error:
            raise MissingExtraError("a bundle of Core AI packages", "coreai", missing=error.name) from None
        _settle_before_exit()
        self._path = path
        self._loop = _Loop()
        self._resources = AsyncExitStack()

        async def load() -> Any:
            model = await self._resources.enter_async_context(AIModelAsset.load(path).executable())
            return model.load_function(FUNCTION)

        try:
            self._function = self._loop.wait(load())
            self.inputs = tuple(self._function.desc.input_names)
        except Exception as error:  # the library's errors come as they are
            self.close()
            raise EngineError(
                f"{path}: Core AI does not load the package ({error})",
                fix="export it again: the format of one beta is not always another's",
            ) from error

    def run(self, values: Values) -> Values:
        """Compute the outputs.

        Args:
            values: every input by name, in the package's types.

        Raises:
            EngineError: the runtime failed.
        """
        from coreai.runtime import NDArray

        given = {name: NDArray(np.ascontiguousarray(value)) for name, value in values.items()}

        async def call() -> dict[str, Any]:
            answer: dict[str, Any] = await self._function(given)
            return answer

        try:
            found = self._loop.wait(call())
        except Exception as error:
            raise EngineError(f"{self._path}: Core AI failed ({error})") from error
        return {name: np.array(value.numpy()) for name, value in found.items()}  # the buffers go with the call

    def placement(self) -> dict[str, int]:
        """Nothing: the runtime does not say where operators run."""
        return {}

    def close(self) -> None:
        """Free the program; a second call does nothing."""
        self._function = None
        self._loop.close(self._resources.aclose())


@functools.cache
def _settle_before_exit() -> None:
    """Once a process: let the runtime's threads finish before Python is taken down.

    After an answer they still give back Python objects. One that comes after the interpreter's end is unwound through
    Swift's frames, and the process aborts after all its work: with coreai-core 1.0.0b3 on a machine with much else to
    do 8 of 24 did, and none of 24 that waited.
    """
    atexit.register(time.sleep, _SETTLE_S)


class _Loop:
    """Waits for the library's coroutines on a thread of its own, so that it works inside a running loop as well."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="coreai")
        self._loop = asyncio.new_event_loop()

    def wait(self, coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
        return self._thread.submit(self._loop.run_until_complete, coroutine).result()

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        if self._loop.is_closed():
            last.close()
            return
        self.wait(last)
        self._loop.close()
        self._thread.shutdown()
