"""The state of a machine while it is measured: clocks, load, what it is made of."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from livemoments.validate.cost.nvml import Gpu, open_gpu
from livemoments.validate.meters import describe_machine

_CPUINFO = Path("/proc/cpuinfo")
_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NO_LIMIT_BYTES = 1 << 60


def machine_record() -> dict[str, str | int | float]:
    """What a number was measured on: processor, memory, versions, GPU, and the limits that this process is under."""
    found: dict[str, str | int | float] = dict(describe_machine())
    if hasattr(os, "sched_getaffinity"):
        found["usable_cores"] = len(os.sched_getaffinity(0))
    if (limit := memory_limit_bytes()) is not None:
        found["memory_limit_bytes"] = limit
    if governor := _first_line(_CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor"):
        found["cpu_governor"] = governor
    gpu, _ = open_gpu()
    if gpu is not None:
        found |= gpu.describe()
        gpu.close()
    return found


def memory_limit_bytes() -> int | None:
    """The container's limit (Linux control groups), ``None`` if there is none."""
    for path in _CGROUP_LIMITS:
        text = _first_line(path)
        if text is not None and text.isdigit() and int(text) < _NO_LIMIT_BYTES:
            return int(text)
    return None


def cpu_mhz() -> float | None:
    """Mean clock of the processor's cores at this moment; ``None`` where the system does not say."""
    scaling = sorted(_CPU_FOLDER.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    khz = [float(text) for path in scaling if (text := _first_line(path)) and text.isdigit()]
    if khz:
        return statistics.mean(khz) / 1000
    try:
        lines = _CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    mhz = [float(line.split(":", 1)[1]) for line in lines if line.startswith("cpu MHz")]
    return statistics.mean(mhz) if mhz else None


def load_average() -> float | None:
    """Processes that wanted to run, averaged over the last minute; ``None`` where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


class State:
    """Clocks in MHz and load at the start and at the end of a measurement.

    Attributes:
        clocks: ``cpu_start_mhz``, ``gpu_sm_start_mhz`` … and the same with ``end``; what cannot be read is missing.
        load: at the start and the end; empty where the system does not say.
    """

    def __init__(self) -> None:
        self.clocks: dict[str, float] = {}
        self.load: tuple[float, ...] = ()

    def read(self, when: str, gpu: Gpu | None) -> None:
        """Add a reading."""
        cpu = cpu_mhz()
        found = ({} if cpu is None else {"cpu": cpu}) | ({} if gpu is None else gpu.clocks_mhz())
        self.clocks |= {f"{name}_{when}_mhz": value for name, value in found.items()}
        load = load_average()
        self.load += () if load is None else (load,)


@contextmanager
def watch_state(gpu: Gpu | None) -> Iterator[State]:
    """Read the clocks and the load before and after the ``with`` block."""
    state = State()
    state.read("start", gpu)
    yield state
    state.read("end", gpu)


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return None
