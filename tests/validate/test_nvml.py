"""What a GPU tells through NVML, and the memory of a process and its children there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest
from fake_nvml import MB, FakeNvml, opened, process

from livemoments.validate.cost.fresh_process import measure_process
from livemoments.validate.cost.memory import VramWatch, family
from livemoments.validate.cost.nvml import count_energy, open_gpu


def test_the_fake_has_nvmls_names() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in vars(FakeNvml):
        if name.startswith(("nvml", "NVML")):
            assert hasattr(pynvml, name), name
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM) == (FakeNvml.NVML_CLOCK_SM, FakeNvml.NVML_CLOCK_MEM)


def test_a_gpu_is_read_through_nvml(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.processes = [process(11, 300 * MB), process(12, 200 * MB), process(13, None)]
    with opened() as gpu:
        assert gpu.used_bytes() == 1000 * MB
        assert gpu.used_by({11, 12, 99}) == 500 * MB
        assert gpu.used_by({13}) is None, "Windows' display driver lists processes without their memory"
        assert gpu.used_by({99}) is None
        assert gpu.clocks_mhz() == {"gpu_sm": 1980.0, "gpu_memory": 2619.0}
        assert gpu.describe() == {"gpu": "NVIDIA H20", "gpu_memory_bytes": 80_000 * MB, "gpu_driver": "580.65"}
        with count_energy(gpu) as joules:
            pass
        assert joules == [pytest.approx(12.0)]
    assert nvml.open == 0
    for visible, used in (("1", 7 * MB), ("GPU-bbb,GPU-aaa", 7 * MB), ("0,1", 1000 * MB)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with opened() as gpu:
            assert gpu.used_bytes() == used


def test_what_a_gpu_does_not_tell_is_missing(nvml: FakeNvml) -> None:
    nvml.fails = {name for name in dir(FakeNvml) if name.startswith(("nvmlDeviceGet", "nvmlSystem"))} - {
        "nvmlDeviceGetHandleByIndex"
    }
    with opened() as gpu:
        assert gpu.used_bytes() is None
        assert gpu.used_by({1}) is None
        assert gpu.clocks_mhz() == {}
        assert gpu.describe() == {}
        with count_energy(gpu) as joules:
            pass
        assert joules == []
        with VramWatch(gpu, os.getpid()) as watch:
            pass
        assert watch.memory().bytes is None
        assert "no memory reading" in watch.memory().method
    nvml.fails = {"nvmlDeviceGetHandleByIndex"}
    assert open_gpu() == (None, "NVML: Not Supported")
    assert nvml.open == 0
    nvml.fails = {"nvmlInit"}
    assert open_gpu() == (None, "NVML: Not Supported")


def test_without_nvml_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpu, why = open_gpu()
    assert gpu is None
    assert "pip install 'livemoments-deploy[validate]'" in why


def test_gpu_memory_is_sampled_while_a_process_and_its_children_run(nvml: FakeNvml) -> None:
    child = "import subprocess, sys, time; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(0.6)'])"
    seen: list[set[int]] = []
    with opened() as gpu:
        watches: list[VramWatch] = []

        def watch(pid: int) -> VramWatch:
            watches.append(VramWatch(gpu, pid, sample_s=0.01))

            def listed(handle: int) -> list[Any]:
                own = family(pid) - {pid}
                seen.append(own)
                return [process(one, (50 + 100 * len(own)) * MB) for one in own] + [process(1, 9000 * MB)]

            nvml.nvmlDeviceGetComputeRunningProcesses = listed  # type: ignore[method-assign, assignment]
            return watches[0]

        measure_process([sys.executable, "-S", "-c", child], watch=watch)
    most = max(map(len, seen))
    assert most == 2, "the command and its child"
    found = watches[0].memory()
    assert (found.kind, found.bytes) == ("vram", most * (50 + 100 * most) * MB)
    assert "of the process" in found.method


def test_without_processes_the_growth_of_the_whole_gpu_counts(nvml: FakeNvml) -> None:
    with opened() as gpu:
        watch = VramWatch(gpu, os.getpid(), sample_s=0.005)
        with watch:
            nvml.used[0] = 4000 * MB
            time.sleep(0.1)
            nvml.used[0] = 1500 * MB
            time.sleep(0.03)
    assert watch.memory().bytes == 3000 * MB
    assert "whole GPU" in watch.memory().method


def test_a_family_is_a_process_and_its_descendants() -> None:
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '30']); print(p.pid, flush=True); sys.stdin.read()"
    parent = subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        assert family(parent.pid) == {parent.pid, child}
        assert {parent.pid, child} < family(os.getpid())
    finally:
        os.kill(child, 9)
        parent.communicate()
