"""A job in a process of its own: handed over and answered in files, its error raised here as what it was."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from livemoments.errors import EngineError, LiveMomentsError, MissingExtraError, ParityError, ResourceError, UsageError
from livemoments.export.coreml.gate import PartParity
from livemoments.heap import peak_resident_bytes

_ERRORS = {kind.__name__: kind for kind in (EngineError, ParityError, ResourceError, UsageError)}
"""Those that end a job and go on as what they are; others, which name a file in their message, as engine errors."""
_OUT_OF_MEMORY_CODE = -9
"""What a process ends with that the system kills for its memory."""

JobType = TypeVar("JobType", bound=msgspec.Struct)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of it: the measurements, or the error by its class's name.

    ``parameters`` counts the module's elements; ``seconds`` and ``peak_rss_bytes`` are this process'.
    """

    parity: PartParity | None = None
    parameters: int = 0
    package_bytes: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    error: str | None = None
    message: str = ""
    fix: str | None = None

    def raise_error(self) -> None:
        """Raise the error that ended the job, if one did."""
        if self.error is not None:
            raise _ERRORS.get(self.error, EngineError)(self.message, fix=self.fix)


def measured(path: Path, started: float, parity: PartParity | None = None, parameters: int = 0) -> Answer:
    """The answer of a job that wrote a package.

    Args:
        path: the package.
        started: by ``time.monotonic``.
        parity: what its check measured.
        parameters: elements of its module.
    """
    return Answer(
        parity=parity,
        parameters=parameters,
        package_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        seconds=round(time.monotonic() - started, 2),
        peak_rss_bytes=peak_resident_bytes(),
    )


def run_job(module: str, job: msgspec.Struct, work: Path, what: str) -> Answer:
    """Let a module do a job in a process of its own; it serves with :func:`serve`.

    Args:
        module: the module's name.
        job: what it gets.
        work: a folder for the job and the answer.
        what: the job, for errors.

    Raises:
        LiveMomentsError: what ended the job; a process that says nothing is an EngineError, one that the system killed
            for its memory a ResourceError.
    """
    job_file, answer_file = work / "job.json", work / "answer.json"
    answer_file.unlink(missing_ok=True)
    job_file.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-m", module, str(job_file), str(answer_file)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode == _OUT_OF_MEMORY_CODE:
        raise ResourceError(f"{what}: the converter was killed, most likely for its memory", fix="use smaller tiles")
    if not answer_file.exists():
        lines = ended.stderr.strip().splitlines() or ["it said nothing"]
        raise EngineError(f"{what}: the converter ended with {ended.returncode}: {lines[-1]}")
    answer = msgspec.json.decode(answer_file.read_bytes(), type=Answer)
    answer.raise_error()
    return answer


def serve(
    run: Callable[[JobType], Answer],
    kind: type[JobType],
    job_file: str,
    answer_file: str,
    *,
    feature: str = "Core ML packages",
    extra: str = "coreml",
) -> None:
    """Read the job, do it, and write the answer.

    Args:
        run: does a job.
        kind: the job's type.
        job_file: where the job lies.
        answer_file: where the answer goes.
        feature: what fails where a package is not installed.
        extra: what brings it.
    """
    job = msgspec.json.decode(Path(job_file).read_bytes(), type=kind)
    try:
        answer = run(job)
    except ModuleNotFoundError as error:
        missing = MissingExtraError(feature, extra, missing=error.name)
        answer = Answer(error="UsageError", message=missing.message, fix=missing.fix)
    except LiveMomentsError as error:
        answer = Answer(error=type(error).__name__, message=error.message, fix=error.fix)
    Path(answer_file).write_bytes(msgspec.json.encode(answer))
