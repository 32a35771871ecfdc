"""The meters: a fresh process's cost, whatever the size of the process that asks."""

from __future__ import annotations

import sys

import pytest

from livemoments.errors import EngineError
from livemoments.validate.meters import describe_machine, measure_process

MB = 1_000_000


def test_peak_memory_is_the_commands_own() -> None:
    ballast = bytearray(400 * MB)  # a fork would inherit this peak
    ballast[::4096] = b"x" * len(ballast[::4096])
    small = measure_process([sys.executable, "-S", "-c", "print('done')"])
    assert (small.returncode, small.stdout.strip()) == (0, "done")
    assert small.peak_rss_bytes < 100 * MB
    large = measure_process(
        [sys.executable, "-S", "-c", "b = bytearray(200_000_000); b[::4096] = b'x' * len(b[::4096])"]
    )
    assert 200 * MB < large.peak_rss_bytes < 300 * MB
    assert len(ballast) == 400 * MB


def test_exit_codes_and_errors_come_back() -> None:
    cost = measure_process([sys.executable, "-S", "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"])
    assert cost.returncode == 3
    assert cost.stderr.strip() == "no"
    assert cost.wall_s > 0


def test_a_command_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(EngineError, match="could not be started"):
        measure_process(["no-such-command-anywhere"])


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"]
    assert machine["memory_bytes"]
    assert machine["onnxruntime"]
