"""The state of a machine while it is measured: clocks, load, what it is made of."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from livemoments.validate.cost.nvml import Gpu, open_gpu
from livemoments.version import __version__, version_of

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "DotProd",
    "i8mm": "I8MM",
    "sve": "SVE",
    "sve2": "SVE2",
}
_CPU_FOLDER = Path("/sys/devices/system/cpu")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NO_LIMIT_BYTES = 1 << 60


def describe_machine() -> dict[str, str | int]:
    """Processor, its vector and matrix instructions, cores, memory, system and versions, for the record beside a
    measurement.
    """
    return {
        "processor": _cpuinfo("model name") or platform.processor() or "unknown",
        "instructions": _instructions(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "livemoments": __version__,
        **{name: version for name in ("numpy", "onnxruntime", "torch") if (version := version_of(name))},
    }


def machine_record() -> dict[str, str | int | float]:
    """What a number was measured on: processor, memory, versions, GPU, and the limits that this process is under."""
    record: dict[str, str | int | float] = dict(describe_machine())
    if hasattr(os, "sched_getaffinity"):
        record["usable_cores"] = len(os.sched_getaffinity(0))
    if (limit := memory_limit_bytes()) is not None:
        record["memory_limit_bytes"] = limit
    if governor := _first_line(_CPU_FOLDER / "cpu0" / "cpufreq" / "scaling_governor"):
        record["cpu_governor"] = governor
    gpu, _ = open_gpu()
    if gpu is not None:
        record |= gpu.describe()
        gpu.close()
    return record


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
    mhz = [float(value) for value in _cpuinfo_values("cpu MHz")]
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
        clocks = ({} if cpu is None else {"cpu": cpu}) | ({} if gpu is None else gpu.clocks_mhz())
        self.clocks |= {f"{name}_{when}_mhz": value for name, value in clocks.items()}
        load = load_average()
        self.load += () if load is None else (load,)


@contextmanager
def watch_state(gpu: Gpu | None) -> Iterator[State]:
    """Read the clocks and the load before and after the ``with`` block."""
    state = State()
    state.read("start", gpu)
    yield state
    state.read("end", gpu)


def _instructions() -> str:
    """Those that decide which kernels run, e.g. ``AVX2`` or ``AVX2, AVX512, AVX512-VNNI, AMX-INT8``; ``unknown`` where
    the system does not list them in ``/proc/cpuinfo``.
    """
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return ", ".join(name for flag, name in _INSTRUCTIONS.items() if flag in flags) or "unknown"


def _cpuinfo(field: str) -> str | None:
    """The first processor's entry in Linux' table."""
    return next(iter(_cpuinfo_values(field)), None)


def _cpuinfo_values(field: str) -> list[str]:
    """Every processor's entry; empty where there is no such table."""
    try:
        rows = [line.partition(":") for line in _CPUINFO.read_text("utf-8", errors="replace").splitlines()]
    except OSError:
        return []
    return [value.strip() for name, _, value in rows if name.strip() == field]


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return None
