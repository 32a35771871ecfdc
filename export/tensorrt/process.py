"""Run a job in a process of its own, and turn whatever becomes of it into progress, a result or one clear error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from livemoments.errors import EngineError, LiveMomentsError, ResourceError
from livemoments.export.tensorrt.protocol import Advanced, Done, Event, Failed, Job
from livemoments.tensorrt.gpu import CUDA_ORDER

_COMMAND = (sys.executable, "-P", "-m", "livemoments.export.tensorrt.worker")
_TAIL_CHARS = 600
_FULL = ("no space left", "disk quota")
_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "cannot allocate")


class RefusedError(EngineError):
    """The library refused a graph; :attr:`failed` has its words."""

    def __init__(self, message: str, failed: Failed, *, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.failed = failed


def run_job(job: Job, what: str, report: Callable[[float, str], None] | None = None) -> Done:
    """Run a job to its end; when this process is interrupted, the other one is ended.

    Args:
        job: what to do.
        what: for messages, e.g. ``stage 'motion' (128x128)``.
        report: gets the fraction that is done, and the library's name of what it does.

    Raises:
        RefusedError: the library refused the graph.
        EngineError: the process died, of a fault in the library.
        ResourceError: it was killed, most likely for its memory, or the disk is full.
    """
    with tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            env=os.environ | CUDA_ORDER,
            start_new_session=True,  # an interrupt at the keyboard reaches this process alone, which ends the other
        )
        try:
            last = _follow(process, job, report)
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):  # what was left to write to a process that is dead
                        stream.close()
        if isinstance(last, Done):
            return last
        raise _error(what, job, last, status, noise)


def _follow(process: subprocess.Popen[bytes], job: Job, report: Callable[[float, str], None] | None) -> Event | None:
    """Hand the job over and read events until there are no more; the last one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()  # it stays open: its end tells the other process that this one is gone
    except BrokenPipeError:  # it is dead already; its status says why
        return None
    last: Event | None = None
    for line in process.stdout:
        last = msgspec.json.decode(line, type=Event)
        if isinstance(last, Advanced) and report is not None:
            report(last.fraction, last.phase)
    return last


def _error(what: str, job: Job, last: Event | None, status: int, noise: IO[bytes]) -> LiveMomentsError:
    if isinstance(last, Failed):
        return _refused(what, job, last)
    if hasattr(signal, "SIGKILL") and status == -signal.SIGKILL:
        return ResourceError(
            f"building {what}: the process was killed, most likely by the system because memory ran out",
            fix="close other programs, or build on a larger machine; engines that are finished are kept",
        )
    noise.seek(0)
    tail = noise.read().decode(errors="replace").strip()[-_TAIL_CHARS:]
    how = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    doing = "parsing" if job.output is None or last is None else "building"
    return EngineError(
        f"{what}: the library's process {how} while {doing}{': ' + tail if tail else ''}",
        fix="see 'livemoments check' for what it cannot take; update the library, and report it if that does not help",
    )


def _refused(what: str, job: Job, failed: Failed) -> LiveMomentsError:
    words = "; ".join([*failed.messages[:1], *(trouble.message for trouble in failed.troubles[:1])]) or "it did not say"
    if failed.fix is not None:
        return RefusedError(f"{what}: {words}", failed, fix=failed.fix)
    lower = words.lower()
    if any(sign in lower for sign in _MEMORY):
        return ResourceError(f"building {what}: memory ran out ({words})", fix="close other programs")
    if failed.while_ == "writing":
        place = Path(job.output or ".").parent
        fix = "make room there" if any(sign in lower for sign in _FULL) else "check the folder and its permissions"
        return ResourceError(f"{place}: the engine of {what} cannot be written ({words})", fix=fix)
    fix = "see what the library cannot take: livemoments check BUNDLE --target " + job.library
    return RefusedError(f"{what}: refused while {failed.while_} ({words})", failed, fix=fix)
