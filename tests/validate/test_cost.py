"""Latency, memory, energy: what is timed, how it is summed up, and what is said where nothing can be measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from fake_nvml import MB, FakeNvml, opened
from logging_backend import LoggingBackend

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.errors import EngineError, ResourceError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size, Stage
from livemoments.validate.cost import machine, memory
from livemoments.validate.cost.fresh_process import ProcessCost
from livemoments.validate.cost.latency import batch_photo, measure_stages, measure_tiles, percentiles
from livemoments.validate.cost.memory import read_footprint, restore_afresh
from livemoments.validate.cost.total import cost_checks, cost_of_run, measure_cost
from livemoments.validate.report_data import Memory

TILE = Size(64, 64)
WIDE = Size(64, 96)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("bundle") / "b", tiles=(TILE, WIDE))


def test_percentiles_are_interpolated() -> None:
    rng = np.random.default_rng()
    seconds = rng.random(37)
    found = percentiles(list(seconds))
    ordered = np.sort(seconds)
    for q in (50, 90, 99):
        place = q / 100 * 36
        low = int(place)
        high = min(low + 1, 36)
        wanted = ordered[low] + (place - low) * (ordered[high] - ordered[low])
        assert found[f"p{q}"] == pytest.approx(wanted)
    assert percentiles([3.0]) == {"p50": 3.0, "p90": 3.0, "p99": 3.0}


def test_every_stage_is_timed_after_the_warm_up(bundle: Bundle) -> None:
    runs: dict[Stage, int] = {}

    def slow_at_first(stage: Stage, run: int) -> None:
        runs[stage] = run + 1
        time.sleep(0.12 if run < 2 else 0.005)

    backend = LoggingBackend(slow_at_first)
    found = measure_stages(bundle, backend, sizes=[TILE], runs=5, warmup=2, batch=2)
    assert [cost.stage for cost in found] == [str(stage) for stage in Stage]
    assert set(runs.values()) == {7}
    for cost in found:
        assert (cost.runs, cost.size) == (5, "64x64")
        assert 0.005 <= cost.p50_s <= cost.p90_s <= cost.p99_s
        assert cost.p50_s < 0.1, "the slow warm-up counts"
        assert cost.load_s > 0
        graph = bundle.graph(cost.stage, TILE)
        assert cost.bytes == sum((bundle.path / name).stat().st_size for name in {graph.path, *graph.weights})
    assert {event[0] for stage in Stage for event in backend.runs(stage)} == {2}
    # keys, values and motion stay where they were computed, as in a restoration
    last = backend.runs(Stage.RESTORATION)[-1]
    assert last[3] == ["motion_bias", *sorted(f"reference_{part}.{block}" for block in range(2) for part in "kv")]
    assert not backend.open_now


def test_all_sizes_are_timed_unless_one_is_named(bundle: Bundle) -> None:
    found = measure_stages(bundle, LoggingBackend(), runs=1, warmup=0)
    assert [cost.size for cost in found] == ["64x64"] * 6 + [str(WIDE)] * 6
    with pytest.raises(UsageError, match="0 timed runs"):
        measure_stages(bundle, LoggingBackend(), runs=0)
    with pytest.raises(UsageError, match="a batch of 0"):
        measure_stages(bundle, LoggingBackend(), batch=0)
    with pytest.raises(UsageError, match="-1 runs"):
        measure_tiles(bundle, RestoreOptions(), LoggingBackend(), warmup=-1)


def test_phase_split_bundles_never_load_both_networks(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "b", tiles=(TILE,), policy="phase-split")
    backend = LoggingBackend()
    measure_stages(bundle, backend, runs=1, warmup=0)
    assert not any({Stage.REFERENCE, Stage.RESTORATION} <= stages for stages in backend.most_open)
    assert backend.runs(Stage.RESTORATION)[0][3] == ["motion_bias"]
    backend = LoggingBackend()
    found = measure_tiles(bundle, RestoreOptions(), backend, runs=3, warmup=1)
    assert len(found.seconds) == 3
    assert not any({Stage.REFERENCE, Stage.RESTORATION} <= stages for stages in backend.most_open)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_whole_tiles_are_batches_without_loading(bundle: Bundle, batch: int, nvml: FakeNvml) -> None:
    def slow_decoder(stage: Stage, run: int) -> None:
        if stage is Stage.VAE_DECODER:
            time.sleep(0.03)

    class SlowToOpen(LoggingBackend):
        def open(self, bundle: Bundle, stage: Stage, size: Size) -> Any:
            time.sleep(0.2)
            return super().open(bundle, stage, size)

    backend = SlowToOpen(slow_decoder)
    with opened() as gpu:
        found = measure_tiles(bundle, RestoreOptions(batch=batch), backend, size=WIDE, runs=4, warmup=1, gpu=gpu)
    assert len(found.seconds) == 4 * batch
    assert 0.03 / batch <= min(found.seconds)
    assert max(found.seconds) < 0.9 / batch, "five engines take a second to open"
    assert {event[0] for event in backend.runs(Stage.VAE_DECODER)} == {batch}
    assert len(backend.runs(Stage.VAE_DECODER)) == 5
    assert found.energy_j == pytest.approx(12.0 / (4 * batch)), "the counter moves by 12 J between two readings"
    cold = measure_tiles(bundle, RestoreOptions(), SlowToOpen(), size=TILE, runs=1, warmup=0)
    assert max(cold.seconds) < 0.9, "loading is not a tile's time"
    frame, photo = batch_photo(bundle, WIDE, batch)
    assert frame.size == photo.size
    assert (frame.pixels != photo.pixels).any()


def test_footprint_is_read_from_macos_time() -> None:
    printed = """        1.21 real         0.98 user         0.11 sys
           248713216  maximum resident set size
                   0  average shared memory size
              161932  instructions retired
          1169255424  peak memory footprint
"""
    assert read_footprint(printed) == 1169255424
    assert read_footprint("error: peak memory footprint unknown") is None


def test_on_macos_the_footprint_is_asked_for(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def measured(command: list[str], watch: Any = None, show_progress: bool = False) -> ProcessCost:
        commands.append(command)
        timings = '"timings": {"tile_seconds": [0.5], "stages": {}}'
        document = f'{{"seconds": 2.5, "width": 64, "height": 64, "metadata": {{}}, {timings}}}'
        return ProcessCost(0, 3.0, 200 * MB, document, "  300000000  peak memory footprint\n")

    monkeypatch.setattr(memory, "measure_process", measured)
    monkeypatch.setattr(memory.platform, "system", lambda: "Darwin")
    photo = LivePhoto(tmp_path / "f.png", tmp_path / "p.png")
    found = restore_afresh(bundle, photo, RestoreOptions(provider="coreml"))
    assert commands[0][:2] == ["/usr/bin/time", "-l"]
    by_kind = {entry.kind: entry for entry in found.memory}
    assert by_kind["footprint"].bytes == 300 * MB
    assert by_kind["peak_rss"].bytes == 200 * MB
    monkeypatch.setattr(memory.platform, "system", lambda: "Windows")
    found = restore_afresh(bundle, photo, RestoreOptions())
    assert len(commands) == 1
    assert all(entry.bytes is None and entry.method for entry in found.memory)


def test_a_failing_restoration_is_an_error(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = LivePhoto(tmp_path / "missing.png", tmp_path / "p.png")
    with pytest.raises(EngineError, match=r"failed in a process of its own: .*missing\.png: no such file"):
        restore_afresh(bundle, photo, RestoreOptions())

    def killed(command: list[str], watch: Any = None, show_progress: bool = False) -> ProcessCost:
        return ProcessCost(-9, 3.0, 200 * MB, "", "")

    monkeypatch.setattr(memory, "measure_process", killed)
    with pytest.raises(ResourceError, match="ended by signal 9"):
        restore_afresh(bundle, photo, RestoreOptions())


def test_the_cost_of_a_run_that_was_wanted_anyway(tmp_path: Path) -> None:
    bundle = Bundle.open(trained_bundle())
    frame, photo = batch_photo(bundle, bundle.tile_sizes[0], 2)
    for name, picture in (("f", frame), ("p", photo)):
        write_image(tmp_path / f"{name}.png", picture.pixels)
    clip = LivePhoto(tmp_path / "f.png", tmp_path / "p.png")
    found = cost_of_run(bundle, RestoreOptions(flow="dis"), clip, tmp_path / "out.png")
    assert read_photo(tmp_path / "out.png").size == photo.size
    assert found.stages == ()
    assert 0 < found.tile_s["p50"] <= found.tile_s["p99"] < (found.photo_s or 0)
    assert found.tiles_per_s == 1 / found.tile_s["p50"]
    assert 0 < found.load_s < (found.photo_s or 0)
    assert found.photo == f"{photo.size.width}x{photo.size.height}"
    assert next(memory.bytes or 0 for memory in found.memory if memory.kind == "peak_rss") > 20 * MB


def test_the_whole_cost(bundle: Bundle, nvml: FakeNvml) -> None:
    class Counting(LoggingBackend):
        peak_device_bytes = 123 * MB

    backend = Counting()
    settings = RestoreOptions(tile=str(WIDE), batch=2, reference="every-2")
    cost = measure_cost(bundle, settings, backend=backend, runs=2, tile_runs=2, warmup=1)
    assert {stage.size for stage in cost.stages} == {str(WIDE)}
    assert len(cost.stages) == len(Stage)
    assert cost.load_s == pytest.approx(sum(stage.load_s for stage in cost.stages))
    assert cost.tiles_per_s == pytest.approx(1 / cost.tile_s["p50"])
    assert cost.photo == f"{96 * 2 - bundle.manifest.overlap}x64"
    assert cost.photo_s is not None
    assert cost.photo_s > cost.tile_s["p50"]
    by_kind = {entry.kind: entry for entry in cost.memory}
    assert set(by_kind) == {"peak_rss", "vram", "runtime_vram", "footprint"}
    peak = by_kind["peak_rss"].bytes
    assert peak is not None
    assert 50 * MB < peak < 1000 * MB
    assert by_kind["runtime_vram"].bytes == 123 * MB
    assert by_kind["vram"].bytes is None
    assert "provider 'cpu'" in by_kind["vram"].method
    assert (cost.energy_j, nvml.open) == (None, 0)
    assert "provider 'cpu'" in cost.energy_method
    assert len(cost.load_average) == 2
    checks = {check.name: check for check in cost_checks(cost)}
    assert checks[f"cost.restoration.{WIDE}.p50_s"].value == cost.stages[4].p50_s
    assert checks["cost.peak_rss.bytes"].value == peak
    assert "cost.vram.bytes" not in checks
    assert {check.status for check in checks.values()} == {"info"}


def test_a_runtime_without_a_counter_says_so() -> None:
    assert memory.runtime_memory(LoggingBackend()) == Memory(
        kind="runtime_vram", bytes=None, method="onnxruntime has no counter of its own in Python"
    )


def test_the_machine_is_recorded(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = machine.machine_record()
    assert found["gpu"] == "NVIDIA H20"
    assert found["cores"]
    assert nvml.open == 0
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", (tmp_path / "none", limit))
    limit.write_text("max\n")
    assert machine.memory_limit_bytes() is None
    limit.write_text("4294967296\n")
    assert machine.machine_record()["memory_limit_bytes"] == 4 << 30
    limit.write_text(f"{(1 << 63) - 4096}\n")  # the first version's way to say that there is none
    assert machine.memory_limit_bytes() is None


def test_clocks_come_from_the_scaling_driver_or_from_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CPU_FOLDER", tmp_path)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.cpu_mhz() is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\ncpu MHz\t\t: 2000.5\n\nprocessor\t: 1\ncpu MHz\t\t: 3000.5\n")
    assert machine.cpu_mhz() == pytest.approx(2500.5)
    for core, khz in enumerate((1_800_000, 2_200_000)):
        folder = tmp_path / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{khz}\n")
    assert machine.cpu_mhz() == pytest.approx(2000.0)
    state = machine.State()
    state.read("start", None)
    state.read("end", None)
    assert state.clocks == {"cpu_start_mhz": 2000.0, "cpu_end_mhz": 2000.0}
    assert len(state.load) == 2
