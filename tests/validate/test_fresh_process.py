"""A fresh process's cost, whatever the size of the process that asks, and the description of a machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from livemoments.errors import EngineError
from livemoments.validate.cost import machine as machine_module
from livemoments.validate.cost.fresh_process import measure_process
from livemoments.validate.cost.machine import describe_machine

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


@pytest.mark.parametrize(
    ("table", "processor", "instructions"),
    [
        (
            "processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: fpu avx avx2 avx512f avx512_vnni amx_int8\n\n"
            "processor\t: 1\nmodel name\t: Other\nflags\t\t: fpu\n",
            "Some CPU: fast",
            "AVX2, AVX512, AVX512-VNNI, AMX-INT8",
        ),
        ("model name\t: Zen\nflags\t\t: avx2\n", "Zen", "AVX2"),
        ("model name\t: Arm\nFeatures\t: fp asimd asimddp i8mm\n", "Arm", "NEON, DotProd, I8MM"),
        ("model name\t: Bare\n", "Bare", "unknown"),
    ],
)
def test_kernels_depend_on_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, processor: str, instructions: str
) -> None:
    (tmp_path / "cpuinfo").write_text(table)
    monkeypatch.setattr(machine_module, "_CPUINFO", tmp_path / "cpuinfo")
    machine = describe_machine()
    assert (machine["processor"], machine["instructions"]) == (processor, instructions)


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"]
    assert machine["memory_bytes"]
    assert machine["onnxruntime"]
