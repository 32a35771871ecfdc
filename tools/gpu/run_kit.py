"""Run the plan of measurements on a GPU machine, in one go or call by call; every step leaves its results as JSON.

Needs Python and PyTorch; what else some steps need travels in ``payload/`` beside the sources (prepare_kit.py). A step
that finds no time is recorded as ``not run: time``, one that is stopped keeps what it had written. ``--dry-run`` does
everything at tiny size on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_state import DRIVER, NAME, first_line, read_clocks, write_json
from kit_steps import CALLS, DRY, FULL, Step, steps

SCHEMA_VERSION = 1
HERE = Path(__file__).resolve().parent
PAYLOAD = HERE.parents[1] / "payload"
MOST_CALL_S = 480.0
_DEFAULT_CALL_S = 460.0
_LEAST_STEP_S = 15.0
"""A step that has less is not begun: it would end before its first number."""
_START_UP_S = 20.0
"""Of a step's time, what its process takes to import PyTorch and to end."""
_TAIL_CHARACTERS = 2000


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: every step that was begun ended well; 1: one did not; 2: a wrong option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--commit", required=True, metavar="HASH", help="of these sources; recorded with every number")
    parser.add_argument("--call", type=int, choices=CALLS, help="only this part of the plan (default: all, in order)")
    parser.add_argument(
        "--budget-s", type=float, default=_DEFAULT_CALL_S, metavar="S", help=f"a call's seconds ({_DEFAULT_CALL_S:g})"
    )
    parser.add_argument("--payload", type=Path, default=PAYLOAD, metavar="DIR", help="what prepare_kit.py made")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="for checkpoints and bundles (default: a temporary one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="everything at tiny size on the CPU")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.budget_s <= MOST_CALL_S:
        parser.error(f"--budget-s {arguments.budget_s:g}: a call has at most {MOST_CALL_S:g} s")
    work = arguments.work or Path(tempfile.gettempdir()) / "livemoments-gpu-kit"
    for folder in (work, arguments.output):
        folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for call in CALLS if arguments.call is None else (arguments.call,):
        failed |= Call(call, arguments, work).run()
    return int(failed)


class Call:
    """One call: its steps, one after the other, within its time.

    Args:
        number: which.
        arguments: of the command line.
        work: a folder that the steps share.
    """

    def __init__(self, number: int, arguments: argparse.Namespace, work: Path) -> None:
        self._number, self._arguments, self._work = number, arguments, work
        self._started = time.monotonic()
        self._records: list[dict[str, Any]] = []
        self._payloads = unpack(arguments.payload, work / "site")

    def run(self) -> bool:
        """Run the steps; whether one of them failed."""
        planned = steps(DRY if self._arguments.dry_run else FULL, call=self._number)
        for index, step in enumerate(planned):
            self._records.append(self._attempt(step, planned[index:]))
            self._save()
            record = self._records[-1]
            sys.stderr.write(f"call {self._number} {step.name}: {record['status']} ({record['took_s']:.0f} s)\n")
        return any(record["status"].startswith("failed") for record in self._records)

    def _attempt(self, step: Step, rest: list[Step]) -> dict[str, Any]:
        record = {"name": step.name, "share": step.share, "took_s": 0.0}
        left_s = self._arguments.budget_s - (time.monotonic() - self._started)
        time_s = left_s * step.share / sum(other.share for other in rest)
        if step.makes is not None and (self._work / step.makes).exists():
            return record | {"status": "there already"}
        if step.payload is not None and step.payload not in self._payloads:
            return record | {"status": f"not run: no payload '{step.payload}'"}
        if left_s < _LEAST_STEP_S or time_s < 1:
            return record | {"status": "not run: time"}
        return record | self._process(step, max(time_s, _LEAST_STEP_S))

    def _process(self, step: Step, time_s: float) -> dict[str, Any]:
        output = self._arguments.output.resolve() / f"{step.name}.json"
        output.unlink(missing_ok=True)
        values = {
            "output": str(output),
            "work": str(self._work.resolve()),
            "budget": f"{max(time_s - _START_UP_S, 1):.0f}",
            "commit": self._arguments.commit,
        }
        script, *options = (word.format(**values) for word in step.command)
        command = [sys.executable, str(HERE / script), *options]
        clocks, began = read_clocks(), time.monotonic()
        code, tail = run_for(command, time_s, self._environment())
        record = {
            "command": [script, *options],
            "took_s": time.monotonic() - began,
            "had_s": time_s,
            "clocks_before": clocks,
            "clocks_after": read_clocks(),
            "exit_code": code,
            "tail": tail,
            "status": "done" if code == 0 else "stopped: time" if code is None else f"failed: exit code {code}",
        }
        if step.has_results:
            with contextlib.suppress(OSError, ValueError):
                record["results"] = json.loads(output.read_text("utf-8"))
        if code == 0 and step.has_results and "results" not in record:
            record["status"] = "failed: no results"
        if code == 0 and step.makes is not None and not (self._work / step.makes).exists():
            record["status"] = f"failed: no {step.makes}"
        return record

    def _environment(self) -> dict[str, str]:
        """Without the settings of this machine's user that change what is measured; with what was brought."""
        paths = [str(path) for path in self._payloads.values()]
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        before = os.environ.get("PYTHONPATH")
        return kept | {
            "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]),
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self._work / "inductor"),
        }

    def _save(self) -> None:
        document = {
            "schema_version": SCHEMA_VERSION,
            "call": self._number,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017
            "commit": self._arguments.commit,
            "command": [Path(__file__).name, *sys.argv[1:]],
            "dry_run": self._arguments.dry_run,
            "chip": first_line(*NAME),
            "driver": first_line(*DRIVER),
            "budget_s": self._arguments.budget_s,
            "elapsed_s": time.monotonic() - self._started,
            "payloads": sorted(self._payloads),
            "steps": self._records,
        }
        write_json(self._arguments.output / f"call-{self._number}.json", document)


def unpack(payload: Path, site: Path) -> dict[str, Path]:
    """Unpack what was brought; each payload's folder for the module path, by its name.

    ``tools`` is first on the path: what ``onnxruntime`` brings replaces the machine's own package of that name.
    """
    found = {}
    for name in ("onnxruntime", "tools"):
        if not (payload / name).is_dir():
            continue
        target = site / name
        if not target.exists():
            partial = site / f".{name}.partial"
            partial.mkdir(parents=True, exist_ok=True)
            for file in sorted((payload / name).iterdir()):
                if file.suffix == ".whl":
                    with zipfile.ZipFile(file) as wheel:
                        wheel.extractall(partial)
                elif file.name.endswith(".tar.xz"):
                    with tarfile.open(file) as archive:
                        archive.extractall(partial, filter="data")
            partial.replace(target)
        found[name] = target
    return found


def run_for(command: list[str], time_s: float, environment: Mapping[str, str]) -> tuple[int | None, str]:
    """Run a command; its exit code, ``None`` where it was stopped, and the end of what it wrote."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(environment), start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(time_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return code, log.read().decode("utf-8", "replace")[-_TAIL_CHARACTERS:]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the step's processes end too
    sys.exit(main())
