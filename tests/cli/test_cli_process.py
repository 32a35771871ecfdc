"""The command line as a process: start-up, signals, pipes, bugs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import livemoments

pytestmark = pytest.mark.process

# Start-up of `livemoments --help` on a 2-core machine was measured at 0.1 to 0.2 s.
STARTUP_LIMIT_S = 1.0
HEAVY = ("cv2", "diffusers", "numpy", "onnx", "onnxruntime", "rich", "torch")

# Stands for a long export: it says that it is at work inside a bundle's folder, and waits.
LONG_EXPORT = """
import sys, time, types
from livemoments.bundle import write_bundle
def export_bundle(checkpoint, output, *, progress, **options):
    with progress.task("working", total=10), write_bundle(output) as writer:
        (writer.folder / "half").write_bytes(b"x" * 1000)
        print("READY", file=sys.stderr, flush=True)
        {body}
module = types.ModuleType("livemoments.export.pipeline")
module.export_bundle = export_bundle
sys.modules[module.__name__] = module
from livemoments.cli import main
sys.exit(main(sys.argv[1:]))
"""


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload]


def end_long_export(
    folder: Path, number: int, *options: str, ignored: int | None = None, work_s: float = 60
) -> tuple[int, str, str]:
    """Start an export, send it a signal while it works; its exit code, stdout and stderr."""

    def set_signals() -> None:
        # A shell's background jobs and nohup ignore some, and the tests' children would inherit that
        for heeded in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(heeded, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    script = LONG_EXPORT.format(body=f"time.sleep({work_s})")
    process = subprocess.Popen(
        [sys.executable, "-c", script, "export", "checkpoint", "-o", str(folder / "bundle"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=set_signals,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "READY\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr


def test_help_imports_nothing_heavy() -> None:
    found = python(
        "-c",
        "import sys\nfrom livemoments.cli import main\ncode = main(['--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\nsys.exit(code)",
    )
    assert found.returncode == 0
    assert found.stderr.strip() == "[]"
    assert "restore" in found.stdout


def test_help_starts_quickly() -> None:
    times_s = []
    for _ in range(3):
        started = time.perf_counter()
        assert python("-m", "livemoments", "--help").returncode == 0
        times_s.append(time.perf_counter() - started)
    assert min(times_s) < STARTUP_LIMIT_S


def test_module_and_script_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("livemoments")
    expected = f"livemoments {livemoments.__version__}\n"
    assert python("-m", "livemoments", "--version").stdout == expected
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_during_work_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    returncode, stdout, stderr = end_long_export(tmp_path, number)
    assert returncode == code
    assert "interrupted; nothing was left half-written" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_reported_as_json_too(tmp_path: Path) -> None:
    returncode, stdout, _ = end_long_export(tmp_path, signal.SIGINT, "--json")
    assert returncode == 130
    assert json.loads(stdout)["error"] == {
        "type": "Interrupted",
        "message": "interrupted; nothing was left half-written",
        "fix": None,
        "exit_code": 130,
    }


def test_nohup_keeps_working(tmp_path: Path) -> None:
    """A SIGHUP that the parent ignores stays ignored: the work runs on, to where the stand-in hands back nothing."""
    returncode, _, stderr = end_long_export(tmp_path, signal.SIGHUP, ignored=signal.SIGHUP, work_s=1)
    assert returncode == 70
    assert "interrupted" not in stderr


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    assert end_long_export(tmp_path, signal.SIGKILL)[0] == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert left
    assert all(path.name.startswith(".bundle.partial-") for path in left)  # hidden: nothing looks finished
    end_long_export(tmp_path, signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback_and_has_its_own_code(tmp_path: Path) -> None:
    script = LONG_EXPORT.format(body="raise EOFError('a bug')")
    found = python("-c", script, "export", "checkpoint", "-o", str(tmp_path / "bundle"))
    assert found.returncode == 70
    assert "Traceback" in found.stderr
    assert "EOFError: a bug" in found.stderr
    assert "this is a bug in livemoments" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "livemoments", "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (141, "")


def test_shells_can_complete_commands_and_options() -> None:
    words = {"COMP_WORDS": "livemoments ex", "COMP_CWORD": "1"}
    environment = {**os.environ, **words, "_LIVEMOMENTS_COMPLETE": "bash_complete"}
    found = python("-m", "livemoments", env=environment)
    assert (found.returncode, found.stdout.strip()) == (0, "plain,export")
    environment |= {"COMP_WORDS": "livemoments export --precision fp", "COMP_CWORD": "3"}
    assert python("-m", "livemoments", env=environment).stdout.split() == ["plain,fp32", "plain,fp16"]
