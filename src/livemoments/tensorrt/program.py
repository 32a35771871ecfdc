"""One deserialized engine of either library, as far as it is run: names, shapes, addresses, a stream to put it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from livemoments.errors import EngineError
from livemoments.tensorrt.device import Stream
from livemoments.tensorrt.library import Library

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output, whose shape is fixed.

    Attributes:
        is_input: of the engine.
        shape: in elements.
        dtype: as numpy names it.
    """

    is_input: bool
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Program(Protocol):
    """An engine that can be run.

    Attributes:
        ports: its inputs and outputs by name.
        nbytes: device memory that its weights and its scratch space take.
    """

    ports: dict[str, Port]
    nbytes: int

    def bind(self, name: str, address: int) -> None:
        """Where the tensor lies from now on."""

    def enqueue(self, stream: Stream) -> None:
        """Queue one run."""

    def close(self) -> None:
        """Free it; no run may be queued any more."""


class TensorRtProgram:
    """An engine of TensorRT or TensorRT for RTX; see :class:`Program`.

    Args:
        library: which of them, imported.
        path: of the engine's file.

    Raises:
        EngineError: the library refuses it, or its tensors are not plain ones on the device.
    """

    def __init__(self, library: Library, path: Path) -> None:
        module = library.module
        self._path = path
        self._title = library.title
        logger = module.Logger(module.Logger.ERROR)
        runtime = module.Runtime(logger)
        data = path.read_bytes()
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{path}: {library.title} does not load the engine", fix="build it again (--rebuild)")
        self.ports = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = _DTYPES.get(engine.get_tensor_dtype(name).name)
            if dtype is None or engine.get_tensor_location(name) != module.TensorLocation.DEVICE:
                raise EngineError(f"{path}: tensor '{name}' is of a type, or in a place, that is not supported")
            is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
            self.ports[name] = Port(is_input, tuple(engine.get_tensor_shape(name)), dtype)
        context = engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"{path}: {library.title} makes no execution context: memory ran out, or the driver is old"
            )
        self.nbytes = len(data) + int(engine.device_memory_size_v2)
        self._held: list[Any] = [context, engine, runtime, logger]  # freed in this order
        self._context: Any = context

    def bind(self, name: str, address: int) -> None:
        """See :class:`Program`."""
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{self._path}: {self._title} does not take an address for '{name}'")

    def enqueue(self, stream: Stream) -> None:
        """See :class:`Program`."""
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"{self._path}: {self._title} could not queue the engine")

    def close(self) -> None:
        """See :class:`Program`."""
        self._context = None
        while self._held:
            del self._held[0]
