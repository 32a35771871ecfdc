"""Runs over a data set as processes: killed at any moment they go on, and their memory does not grow."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from fake_bundle import make_fake_bundle
from harness_support import make_dataset, pictures_in, without_times
from places import SUPPORT

from livemoments.bundle import Bundle
from livemoments.types import Size
from livemoments.validate.cost.fresh_process import measure_process
from livemoments.validate.harness.run_store import JOURNAL_NAME
from livemoments.validate.report_data import ImageResult

pytestmark = pytest.mark.process

COUNT = 5
FEW, MANY = 4, 24
GROWTH_LIMIT_BYTES = 3_000_000
"""For 20 more images; were one 8-bit picture of each kept, it would be 5.8 MB."""
MEMORY_PHOTO = Size(288, 336)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("bundle") / "b", tiles=(Size(64, 64),))


def command(bundle: Bundle, data: Path, count: int, work: Path) -> list[str]:
    script = SUPPORT / "harness_run.py"
    return [sys.executable, str(script), str(bundle.path), str(data), str(count), str(work)]


def results_in(work: Path) -> list[ImageResult]:
    lines = [msgspec.json.decode(line) for line in (work / JOURNAL_NAME).read_bytes().splitlines()[1:]]
    found = [msgspec.convert(line["result"], ImageResult) for line in lines if "result" in line]
    return sorted(found, key=lambda result: result.name)


def run_until(arguments: list[str], lines: int, *, delay_s: float = 0.0) -> int:
    """Run and kill (SIGKILL) a little after so many images were said; the exit code."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


def test_killed_and_started_again_it_ends_alike(bundle: Bundle, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", COUNT)
    subprocess.run(command(bundle, tmp_path / "data", COUNT, tmp_path / "whole"), check=True, capture_output=True)
    again = command(bundle, tmp_path / "data", COUNT, tmp_path / "work")
    done = 2
    assert run_until([*again, str(done)], done) == -signal.SIGKILL
    assert [result.name for result in results_in(tmp_path / "work")] == ["photo000", "photo001"]
    rest = subprocess.run(again, check=True, capture_output=True, text=True).stdout.split()
    assert rest == [*(f"photo{index:03}" for index in range(COUNT)), "work", "finished"]
    found, wanted = results_in(tmp_path / "work"), results_in(tmp_path / "whole")
    assert list(map(without_times, found)) == list(map(without_times, wanted))
    assert len(found) == COUNT
    assert pictures_in(tmp_path / "work") == pictures_in(tmp_path / "whole")
    assert [result.worker for result in found[:done]] != [result.worker for result in found[done:]][:done]
    before = (tmp_path / "work" / JOURNAL_NAME).read_bytes()
    subprocess.run(again, check=True, capture_output=True)
    assert (tmp_path / "work" / JOURNAL_NAME).read_bytes() == before


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_alike(bundle: Bundle, tmp_path: Path) -> None:
    """Again and again, a little later each time: in the middle of images, pictures and lines."""
    count = 2 * COUNT
    make_dataset(tmp_path / "data", count)
    subprocess.run(command(bundle, tmp_path / "data", count, tmp_path / "whole"), check=True, capture_output=True)
    again = command(bundle, tmp_path / "data", count, tmp_path / "work")
    known = kills = 0
    while known < count - 2:
        kills += run_until(again, known + 1, delay_s=0.003 * kills) == -signal.SIGKILL
        known = len(results_in(tmp_path / "work"))
    assert kills >= 3
    subprocess.run(again, check=True, capture_output=True)
    found, wanted = results_in(tmp_path / "work"), results_in(tmp_path / "whole")
    assert list(map(without_times, found)) == list(map(without_times, wanted))
    assert pictures_in(tmp_path / "work") == pictures_in(tmp_path / "whole")
    assert not list((tmp_path / "work").rglob(".*")), "nothing half-written is left"


def test_freed_pictures_go_back_to_the_system() -> None:
    """In a process whose allocator has learnt to keep large blocks, as it does after the first few."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("glibc's allocator is meant")
    script = """
import sys
import numpy as np
from pathlib import Path
from livemoments.heap import give_back_large_blocks
if sys.argv[1] == "given back":
    assert give_back_large_blocks()
for _ in range(3):
    np.ones(30 << 20, np.uint8)
blocks = [np.ones(4 << 20, np.uint8) for _ in range(20)]
last = np.ones(4 << 20, np.uint8)
del blocks
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""
    sizes = {}
    for mode in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", script, mode], capture_output=True, text=True, check=True)
        sizes[mode] = int(done.stdout)
    assert sizes["kept"] - sizes["given back"] > 60_000_000, sizes


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "b", tiles=(Size(128, 128),))
    make_dataset(tmp_path / "data", MANY, size=MEMORY_PHOTO)
    peaks = {}
    for count in (FEW, MANY):
        cost = measure_process(command(bundle, tmp_path / "data", count, tmp_path / f"work{count}"))
        assert cost.returncode == 0, cost.stderr
        assert cost.stdout.split()[-1] == "finished"
        peaks[count] = cost.peak_rss_bytes
    assert peaks[MANY] - peaks[FEW] < GROWTH_LIMIT_BYTES, peaks
