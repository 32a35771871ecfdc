"""An NVIDIA GPU's own counters through NVML (package nvidia-ml-py, extra ``validate``)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

GPU_PROVIDERS = ("cuda", "tensorrt", "rtx", "native-tensorrt", "native-rtx")
"""Providers that compute on an NVIDIA GPU."""
_Value = TypeVar("_Value")


class Gpu:
    """The GPU that CUDA uses first. Every reading is ``None`` where the driver does not give it.

    Args:
        pynvml: the module, initialised.
        handle: of the GPU.
    """

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self._nvml = pynvml
        self._handle = handle

    def used_bytes(self) -> int | None:
        """Memory in use on the whole GPU."""
        return self._read(lambda: int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used))

    def total_bytes(self) -> int | None:
        """The GPU's memory."""
        return self._read(lambda: int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total))

    def used_by(self, pids: Collection[int]) -> int | None:
        """Memory in use by these processes; ``None`` where none of them is listed, or their memory is not."""

        def read() -> int | None:
            listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            known = [int(one.usedGpuMemory) for one in listed if one.pid in pids and one.usedGpuMemory is not None]
            return sum(known) if known else None

        return self._read(read)

    def energy_j(self) -> float | None:
        """Energy since the driver was loaded (the counter is in mJ; Volta and newer)."""
        return self._read(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000)

    def clocks_mhz(self) -> dict[str, float]:
        """Current clocks of the multiprocessors and the memory."""
        kinds = {"gpu_sm": self._nvml.NVML_CLOCK_SM, "gpu_memory": self._nvml.NVML_CLOCK_MEM}
        clocks = {}
        for name, kind in kinds.items():
            value = self._read(lambda kind=kind: float(self._nvml.nvmlDeviceGetClockInfo(self._handle, kind)))  # type: ignore[misc]
            if value is not None:
                clocks[name] = value
        return clocks

    def describe(self) -> dict[str, str | int]:
        """Name, memory and driver."""
        properties = {
            "gpu": self._read(lambda: _text(self._nvml.nvmlDeviceGetName(self._handle))),
            "gpu_memory_bytes": self.total_bytes(),
            "gpu_driver": self._read(lambda: _text(self._nvml.nvmlSystemGetDriverVersion())),
        }
        return {name: value for name, value in properties.items() if value is not None}

    def close(self) -> None:
        """Let go of NVML."""
        self._read(self._nvml.nvmlShutdown)

    def _read(self, call: Callable[[], _Value]) -> _Value | None:
        try:
            return call()
        except self._nvml.NVMLError:
            return None


@contextlib.contextmanager
def count_energy(gpu: Gpu | None) -> Iterator[list[float]]:
    """Count the GPU's energy over the ``with`` block (NVML's total energy counter; it ticks every 20 to 100 ms).

    Gives a list that holds the joules of the whole GPU, idle power included, afterwards; empty where it cannot count.
    """
    joules: list[float] = []
    before = None if gpu is None else gpu.energy_j()
    yield joules
    after = None if gpu is None else gpu.energy_j()
    if before is not None and after is not None and after >= before:
        joules.append(after - before)


def open_gpu() -> tuple[Gpu | None, str]:
    """The GPU, or ``None`` and why there is none; close it in the end."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None, "NVML needs the extra 'validate': pip install 'livemoments-deploy[validate]'"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    try:
        return Gpu(pynvml, _first_visible(pynvml)), "NVML"
    except pynvml.NVMLError as error:
        pynvml.nvmlShutdown()
        return None, f"NVML: {error}"


def _first_visible(pynvml: Any) -> Any:
    """CUDA's device 0: the first that CUDA_VISIBLE_DEVICES names, by index or UUID."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    return pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older bindings give bytes
