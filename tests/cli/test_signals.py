"""SIGINT and SIGKILL while a real checkpoint is exported and a real photo restored, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from real_runs import PHOTO_SIZE, save_pair

from livemoments.bundle import Bundle
from livemoments.runtime.image_files.photo import read_photo
from livemoments.types import Size

pytestmark = pytest.mark.process

START_LIMIT_S = 120.0
"""Until the work has begun; a few seconds on an idle machine."""
END_LIMIT_S = 60.0
POLL_S = 0.02
LONG_WORK = Size(1024, 1024)
"""A photo whose restoring takes several times as long as a crowded machine may keep the test waiting."""


def heed_interrupts() -> None:
    """A shell starts its background jobs with SIGINT ignored, and children inherit that from the tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Work:
    """A command line to interrupt.

    Attributes:
        arguments: the whole command.
        begun: whether it is in the middle of its work.
        output: what it is making.
        scratch: where it keeps temporary files.
        again: options with which it is run once more afterwards, to the end.
        check: that this run did what it should.
    """

    arguments: Sequence[object]
    begun: Callable[[], bool]
    output: Path
    scratch: Path
    again: Sequence[object]
    check: Callable[[], None]

    def command(self, *options: object) -> list[str]:
        return [sys.executable, "-m", "livemoments", *map(str, (*self.arguments, *options))]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.scratch), "OMP_NUM_THREADS": "2"}

    def interrupt(self, number: int) -> tuple[int, str, str]:
        """Start it, send the signal in the middle; its exit code, stdout and stderr."""
        process = subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            preexec_fn=heed_interrupts,
        )
        limit_s = time.monotonic() + START_LIMIT_S
        while not self.begun():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit_s
            time.sleep(POLL_S)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=END_LIMIT_S)
        return process.returncode, stdout, stderr

    def leftovers(self) -> list[str]:
        places = [self.output.parent, self.scratch]
        return sorted(path.name for place in places if place.exists() for path in place.iterdir())


@pytest.fixture(params=[pytest.param("export", marks=pytest.mark.slow), "restore"])
def work(request: pytest.FixtureRequest, tmp_path: Path) -> Work:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = tmp_path / "made"
    if request.param == "export":
        checkpoint: Path = request.getfixturevalue("tiny_checkpoint")
        output = folder / "bundle"
        common = ("export", checkpoint, "-o", output, "--tile", 256, "--overlap", 32, "--steps", 6, "--verify", "none")
        return Work(
            common,
            lambda: any(folder.glob(".bundle.partial-*/flow")),
            output,
            scratch,
            ("--stages", "motion"),
            lambda: Bundle.open(output) and None,
        )
    bundle: Path = request.getfixturevalue("tiny_bundle")
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
    frame, photo = save_pair(tmp_path / "long", LONG_WORK, LONG_WORK)
    short_frame, short_photo = save_pair(tmp_path / "short")
    output = folder / "out.png"
    store = ("--reference", "phase-split", "--kv-store", "disk", "--flow", "dis")

    def check() -> None:
        assert read_photo(output).size == PHOTO_SIZE

    return Work(
        ("restore", bundle, "--frame", frame, "--photo", photo, "-o", output, *store),
        lambda: any(path.is_file() for path in scratch.rglob("*")),
        output,
        scratch,
        ("--frame", short_frame, "--photo", short_photo),
        check,
    )


def test_an_interrupt_ends_with_130_and_leaves_nothing(work: Work) -> None:
    code, stdout, stderr = work.interrupt(signal.SIGINT)
    assert code == 130, stderr
    assert stderr == "interrupted; nothing was left half-written\n"
    assert stdout == ""
    assert work.leftovers() == []


def test_a_kill_leaves_nothing_that_looks_finished_and_the_next_run_clears_it(work: Work) -> None:
    code, stdout, _ = work.interrupt(signal.SIGKILL)
    assert (code, stdout) == (-signal.SIGKILL, "")
    assert not work.output.exists()
    left = work.leftovers()
    assert left, "it was killed too late"
    assert all(name.startswith((".", "livemoments-")) for name in left)
    again = subprocess.run(work.command(*work.again), capture_output=True, text=True, env=work.environment, check=False)
    assert again.returncode == 0, again.stderr
    work.check()
    assert work.leftovers() == [work.output.name]
