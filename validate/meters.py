"""Meters: the peak memory of a fresh process, the machine that a number was measured on."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from livemoments.errors import EngineError
from livemoments.version import __version__

_LAUNCHER = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.perf_counter() - started
with open(sys.argv[1], "w") as stream:
    stream.write(f"{os.waitstatus_to_exitcode(status)} {wall_s} {usage.ru_maxrss}")
"""
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
_RSS_UNIT_BYTES = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux


@dataclass(frozen=True, slots=True)
class ProcessCost:
    """What one process cost: exit code, wall time, peak resident memory, and what it printed."""

    returncode: int
    wall_s: float
    peak_rss_bytes: int
    stdout: str
    stderr: str


def measure_process(
    command: Sequence[str],
    *,
    watch: Callable[[int], AbstractContextManager[object]] | None = None,
    show_progress: bool = False,
) -> ProcessCost:
    """Run a command as a fresh process and read its peak resident set from the operating system (POSIX only).

    A process inherits the peak of the one that forked it, so the command is started by a small launcher and not by
    the caller, which may be large.

    Args:
        command: the program and its arguments.
        watch: called with the launcher's process id, whose only child is the command; what it gives is entered while
            the command runs (:class:`livemoments.validate.cost.memory.VramWatch`).
        show_progress: let it draw its bars on this process' stderr, which then is not in the result.

    Raises:
        EngineError: the command cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile() as measured:
        launcher = [sys.executable, "-S", "-c", _LAUNCHER, measured.name, *command]
        process = subprocess.Popen(
            launcher,
            stdout=out,
            stderr=None if show_progress else err,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with nullcontext() if watch is None else watch(process.pid):
                process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        texts = [stream.read().decode(errors="replace") for stream in (out, err)]
        found = measured.read().split()
        if len(found) != 3:
            raise EngineError(f"'{command[0]}' could not be started: {texts[1].strip()}")
        returncode, wall_s, peak = int(found[0]), float(found[1]), int(found[2])
        return ProcessCost(returncode, wall_s, peak * _RSS_UNIT_BYTES, *texts)


def describe_machine() -> dict[str, str | int]:
    """Processor, its vector and matrix instructions, cores, memory, system and versions, for the record beside a
    measurement."""
    return {
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "livemoments": __version__,
        **{name: version for name in ("numpy", "onnxruntime", "torch") if (version := _version(name))},
    }


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _instructions() -> str:
    """Those that decide which kernels run, e.g. ``AVX2`` or ``AVX2, AVX512, AVX512-VNNI, AMX-INT8``; ``unknown`` where
    the system does not list them in ``/proc/cpuinfo``."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features") or "").split())
    return ", ".join(name for flag, name in _INSTRUCTIONS.items() if flag in flags) or "unknown"


def _cpuinfo(field: str) -> str | None:
    """The first processor's entry in Linux' table."""
    try:
        lines = _CPUINFO.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.partition(":")[0].strip() == field), None)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
