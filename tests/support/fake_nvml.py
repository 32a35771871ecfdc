"""NVML without a GPU: two of them whose readings the test sets."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

from livemoments.validate.cost.nvml import Gpu, open_gpu

MB = 1_000_000


class FakeNvml(types.ModuleType):
    """NVML as nvidia-ml-py shows it, for a machine with two GPUs. Readings are set by the test."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.open = 0
        self.fails: set[str] = set()
        self.used = [1000 * MB, 7 * MB]
        self.millijoules = 5_000_000
        self.processes: list[Any] = []

    def _check(self, name: str) -> None:
        assert self.open or name == "nvmlInit", "used before nvmlInit or after nvmlShutdown"
        if name in self.fails:
            raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802
        self._check("nvmlInit")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._check("nvmlShutdown")
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._check("nvmlDeviceGetHandleByIndex")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        self._check("nvmlDeviceGetHandleByUUID")
        return {"GPU-aaa": 0, "GPU-bbb": 1}[uuid]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._check("nvmlDeviceGetMemoryInfo")
        return types.SimpleNamespace(total=80_000 * MB, free=0, used=self.used[handle])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        self._check("nvmlDeviceGetComputeRunningProcesses")
        return self.processes

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self._check("nvmlDeviceGetTotalEnergyConsumption")
        self.millijoules += 12_000
        return self.millijoules

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        self._check("nvmlDeviceGetClockInfo")
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        self._check("nvmlDeviceGetName")
        return b"NVIDIA H20"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._check("nvmlSystemGetDriverVersion")
        return "580.65"


def process(pid: int, used: int | None) -> Any:
    return types.SimpleNamespace(pid=pid, usedGpuMemory=used, gpuInstanceId=None)


@contextlib.contextmanager
def opened() -> Iterator[Gpu]:
    gpu, _ = open_gpu()
    assert gpu is not None
    yield gpu
    gpu.close()
