"""Meters: the peak memory of a fresh process, the machine that a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from livemoments.version import __version__

_RSS_UNIT_BYTES = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """What one process cost: exit code, wall time, peak resident memory, and what it printed."""

    returncode: int
    wall_s: float
    peak_rss_bytes: int
    stdout: str
    stderr: str


def measure_process(command: Sequence[str]) -> ProcessCost:
    """Run a command as a fresh process and read its peak resident set from the operating system (POSIX only)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen(list(command), stdout=out, stderr=err, stdin=subprocess.DEVNULL)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        return ProcessCost(
            process.returncode,
            wall_s,
            usage.ru_maxrss * _RSS_UNIT_BYTES,
            out.read().decode(errors="replace"),
            err.read().decode(errors="replace"),
        )


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, memory, system and versions, for the record beside a measurement."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "livemoments": __version__,
        **{name: version for name in ("numpy", "onnxruntime", "torch") if (version := _version(name))},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:  # noqa: PTH123 (a kernel file, not a path)
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
