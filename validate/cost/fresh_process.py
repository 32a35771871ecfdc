"""A command in a fresh process: how long it took, and its peak memory."""

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

from livemoments.errors import EngineError

_LAUNCHER = """
import os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.perf_counter() - started
with open(sys.argv[1], "w") as stream:
    stream.write(f"{os.waitstatus_to_exitcode(status)} {wall_s} {usage.ru_maxrss}")
"""
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
        measurements = measured.read().split()
        if len(measurements) != 3:
            raise EngineError(f"'{command[0]}' could not be started: {texts[1].strip()}")
        returncode, wall_s, peak = int(measurements[0]), float(measurements[1]), int(measurements[2])
        return ProcessCost(returncode, wall_s, peak * _RSS_UNIT_BYTES, *texts)
