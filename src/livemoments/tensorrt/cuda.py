"""CUDA's runtime as a :class:`~livemoments.tensorrt.device.Device`, through NVIDIA's own bindings (``cuda-bindings``).

Written after the runtime's documentation, compared with the bindings' signatures, and never run: no GPU was at hand.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from livemoments.errors import EngineError, MissingExtraError, ResourceError
from livemoments.manifest import EngineLibrary
from livemoments.tensorrt.device import Event, Memory, Recording, Stream

_MEMORY_FIX = "use a bundle with smaller tiles (export --tile), --batch 1, or --residency phases"


class CudaDevice:
    """The first visible GPU; see :class:`~livemoments.tensorrt.device.Device`.

    Args:
        extra: the extra that brings the bindings, for the error.

    Raises:
        MissingExtraError: they are not installed.
        EngineError: there is no driver, or no GPU.
    """

    def __init__(self, extra: EngineLibrary) -> None:
        try:
            self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        except ModuleNotFoundError as error:
            raise MissingExtraError("running engines on a GPU", extra, missing=error.name) from None
        (count,) = self._call("cudaGetDeviceCount")
        if count < 1:
            raise EngineError("CUDA finds no GPU", fix="look at CUDA_VISIBLE_DEVICES")

    def allocate(self, nbytes: int, *, pinned: bool) -> Memory:
        """See :class:`Device`."""
        if not pinned:
            (address,) = self._call("cudaMalloc", nbytes)
            return Memory(int(address), nbytes)
        (address,) = self._call("cudaMallocHost", nbytes)
        view = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))
        return Memory(int(address), nbytes, view)

    def free(self, memory: Memory) -> None:
        """See :class:`Device`."""
        self._call("cudaFree" if memory.host is None else "cudaFreeHost", memory.address)

    def make_stream(self) -> Stream:
        """See :class:`Device`; it does not wait for CUDA's default stream."""
        (stream,) = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        return int(stream)

    def drop_stream(self, stream: Stream) -> None:
        """See :class:`Device`."""
        self._call("cudaStreamDestroy", stream)

    def copy(self, target: Memory, source: Memory, nbytes: int, stream: Stream) -> None:
        """See :class:`Device`."""
        kinds = self._cuda.cudaMemcpyKind
        kind = kinds.cudaMemcpyDeviceToHost if source.host is None else kinds.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target.address, source.address, nbytes, kind, stream)

    def mark(self, stream: Stream) -> Event:
        """See :class:`Device`."""
        (event,) = self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming)
        self._call("cudaEventRecord", event, stream)
        made = _Event(event)
        weakref.finalize(made, self._cuda.cudaEventDestroy, event).atexit = False
        return made

    def wait(self, stream: Stream, event: Event) -> None:
        """See :class:`Device`."""
        self._call("cudaStreamWaitEvent", stream, event.handle, 0)

    def synchronize(self, event: Event) -> None:
        """See :class:`Device`."""
        self._call("cudaEventSynchronize", event.handle)

    def record(self, stream: Stream, queue: Callable[[], None]) -> Recording:
        """See :class:`Device`; other threads' calls do not disturb it."""
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            queue()
        finally:  # a capture that is left open spoils the stream
            (graph,) = self._call("cudaStreamEndCapture", stream)
        (recording,) = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return recording

    def replay(self, recording: Recording, stream: Stream) -> None:
        """See :class:`Device`."""
        self._call("cudaGraphLaunch", recording, stream)

    def drop_recording(self, recording: Recording) -> None:
        """See :class:`Device`."""
        self._call("cudaGraphExecDestroy", recording)

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._cuda, name)(*arguments)
        if status == self._cuda.cudaError_t.cudaSuccess:
            return tuple(results)
        _, text = self._cuda.cudaGetErrorString(status)
        message = f"CUDA's {name} failed: {text.decode() if text else status.name}"
        if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
            raise ResourceError(message, fix=_MEMORY_FIX, of_memory=True)
        raise EngineError(message, fix="look at nvidia-smi: is there a GPU, and is its driver new enough?")


class _Event:
    """An event of CUDA, destroyed when nobody refers to it any more (which the driver does once it has come)."""

    __slots__ = ("__weakref__", "handle")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
