"""The back-end that runs a bundle's TensorRT engines by themselves: no torch, no onnxruntime.

**Not run on a GPU yet.** What it asks of a GPU is small (``device.py``), and was tested on one that runs on the CPU.
"""

from __future__ import annotations

from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.engine_files import TITLES, EngineHost, find_engine
from livemoments.errors import EngineError, UsageError
from livemoments.manifest import EngineLibrary
from livemoments.runtime.backends.base import Backend
from livemoments.tensorrt.cuda import CudaDevice
from livemoments.tensorrt.device import Device
from livemoments.tensorrt.engine import TensorRtEngine
from livemoments.tensorrt.gpu import find_gpu
from livemoments.tensorrt.library import Library, load_library
from livemoments.tensorrt.ordering import Memories
from livemoments.tensorrt.program import Program, TensorRtProgram
from livemoments.types import Size, Stage

PROVIDERS: dict[str, EngineLibrary] = {"native-tensorrt": "tensorrt", "native-rtx": "rtx"}
"""What ``--provider`` calls the libraries."""


class TensorRtBackend(Backend):
    """Opens engines that ``livemoments build`` put into a bundle.

    Args:
        provider: ``native-tensorrt`` or ``native-rtx``.
        batch: tiles that the engines were built for.

    Raises:
        UsageError: there is no such provider.
        MissingExtraError: the library or CUDA's bindings are not installed.
        EngineError: they cannot be used, or there is no GPU.
    """

    name = "tensorrt"
    queues_ahead = True

    def __init__(self, provider: str, batch: int = 1) -> None:
        if provider not in PROVIDERS:
            raise UsageError(f"TensorRT's engines have no provider '{provider}'", fix=f"use {' or '.join(PROVIDERS)}")
        self.provider = provider
        self._batch = batch
        self._library = load_library(PROVIDERS[provider])
        self._memories = Memories(self._open_device())
        self._host = self._find_host()
        self._copies = self._memories.device.make_stream()

    @property
    def peak_device_bytes(self) -> int:
        """See :class:`Backend`: engines' files, their scratch space, and every buffer; not what CUDA itself takes."""
        return self._memories.peak_bytes

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> TensorRtEngine:
        """Load the stage's engine for tiles of this size; see :meth:`Backend.open`.

        Raises:
            EngineError: there is none for this GPU and library, or it is stale: with the command that builds it.
        """
        graph = bundle.graph(stage, size)
        path = find_engine(bundle, stage, size, self._batch, self._host)
        program = self._load(self._library, path)
        try:
            return TensorRtEngine(
                stage,
                graph.inputs,
                graph.outputs,
                program,
                self._memories,
                batch=self._batch,
                copies=self._copies,
            )
        except Exception:
            program.close()
            raise

    def _find_host(self) -> EngineHost:
        gpu = find_gpu()
        if gpu is None:
            raise EngineError(
                f"{TITLES[self._library.name]} engines run on an NVIDIA GPU, and none was found",
                fix="install the driver and nvidia-ml-py, or use --provider cpu with the bundle's graphs",
            )
        return EngineHost(self._library.name, self._library.version, (gpu.sm,), gpu.driver)

    def _open_device(self) -> Device:
        return CudaDevice(self._library.name)

    def _load(self, library: Library, path: Path) -> Program:
        return TensorRtProgram(library, path)
