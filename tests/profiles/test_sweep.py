"""Sweeps over a small data set: what is measured, what is kept, what a failure and an end leave."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
import pytest
from cli_support import error_of, run
from fake_bundle import make_fake_bundle
from harness_support import make_dataset

from livemoments.bundle import Bundle
from livemoments.distances import mean_squared_error, psnr_of
from livemoments.errors import ImageError, ResourceError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.profiles.sweeps import points as points_at_work
from livemoments.profiles.sweeps.axes import parse_axis
from livemoments.profiles.sweeps.crop import find_crop
from livemoments.profiles.sweeps.objectives import value_of
from livemoments.profiles.sweeps.report_data import PointCost, SweepReport
from livemoments.profiles.sweeps.run import SweepOptions, sweep
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import restore
from livemoments.types import Size
from livemoments.validate.cost import memory
from livemoments.validate.cost.fresh_process import ProcessCost
from livemoments.validate.cost.total import cost_of_run
from livemoments.validate.quality.meter import QualityMeter
from livemoments.validate.report_data import Memory as Peak

ONE_THREAD = RestoreOptions(threads=1)
QUICK = SweepOptions(base=ONE_THREAD, runs=1)
PSNR_LIMIT_DB = 1e-6  # a PSNR through its mean squared error and back
TILE = Size(64, 64)


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Photos cost the same made-up numbers everywhere; the candidates that were asked for."""
    asked: list[str] = []

    def measure(bundle: Bundle, settings: RestoreOptions, *_: Any, **__: Any) -> tuple[PointCost, bytes]:
        asked.append(f"{bundle.path.name} {settings.steps}")
        peak = Peak(kind="peak_rss", bytes=10**8 + settings.steps, method="made up")
        return PointCost(seconds=(float(settings.steps or 0),), load_seconds=(0.25,), memory=(peak,)), b"a crop"

    monkeypatch.setattr(points_at_work, "measure_photo", measure)
    return asked


def names(report: SweepReport) -> list[tuple[str, ...]]:
    return [(point.bundle, *point.values.values()) for point in report.points]


# What is measured


def test_the_crop_lies_where_the_detail_is() -> None:
    frame = np.full((120, 200, 3), 90, np.uint8)
    rng = np.random.default_rng()
    y, x = int(rng.integers(0, 80)), int(rng.integers(0, 160))
    frame[y : y + 40, x : x + 40] = rng.integers(0, 255, (40, 40, 3))
    crop = find_crop(Photo(frame), Size(240, 400), side_px=80)
    assert crop.size == Size(80, 80)
    assert abs(crop.y - 2 * y) <= 4
    assert abs(crop.x - 2 * x) <= 4
    whole = find_crop(Photo(frame), Size(240, 400), side_px=1000)
    assert (whole.y, whole.x, whole.size) == (0, 0, Size(240, 400))


def test_quality_is_what_the_pictures_say(
    exact: Bundle, half: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    axes = [parse_axis("steps=6,1")]
    report = sweep([exact, half], photos, axes, tmp_path / "out", QUICK)
    assert names(report) == [("exact", "6"), ("exact", "1"), ("half", "6"), ("half", "1")]
    meter = QualityMeter()

    def pictures(bundle: Bundle, steps: int) -> list[np.ndarray]:
        live = [LivePhoto(*(photos / part / f"photo{n:03}.png" for part in ("lr", "ref", "ref_lr"))) for n in range(2)]
        options = RestoreOptions(steps=steps, threads=1, reference="per-step")
        return [restore(bundle, one, options).image for one in live]

    truths = [read_photo(photos / "gt" / f"photo{number:03}.png").pixels for number in range(2)]
    wanted = pictures(exact, 6)

    def psnr_y(found: Sequence[np.ndarray]) -> float:
        values = [
            meter.measure(one, one, one, truth).metrics["psnr_y"] for one, truth in zip(found, truths, strict=True)
        ]
        return fmean(value for value in values if value is not None)

    for point, (bundle, steps) in zip(report.points, ((exact, 6), (exact, 1), (half, 6), (half, 1)), strict=True):
        found = pictures(bundle, steps)
        error = fmean(mean_squared_error(one, other) for one, other in zip(found, wanted, strict=True))
        fidelity = value_of(point, "fidelity")
        assert fidelity == (math.inf if error == 0 else pytest.approx(psnr_of(error, 255.0), abs=PSNR_LIMIT_DB))
        assert value_of(point, "psnr_y") == pytest.approx(psnr_y(found), abs=PSNR_LIMIT_DB)
        assert value_of(point, "quality_drop") == pytest.approx(psnr_y(wanted) - psnr_y(found), abs=PSNR_LIMIT_DB)
        assert value_of(point, "size") == sum(file.bytes for file in bundle.manifest.files.values())
        assert value_of(point, "latency") == steps
        assert value_of(point, "warm_latency") == steps - 0.25
    assert value_of(report.points[0], "fidelity") == math.inf  # the exact result itself
    assert math.isfinite(value_of(report.points[1], "fidelity") or math.inf)


def test_without_truth_there_is_the_exact_result(
    exact: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    bare = tmp_path / "bare"
    for part in ("lr", "ref"):
        (bare / part).mkdir(parents=True)
        for file in (photos / part).iterdir():
            (bare / part / file.name).write_bytes(file.read_bytes())
    report = sweep([exact], bare, [parse_axis("steps=3,1")], tmp_path / "out", QUICK)
    assert report.compared == ("latency", "memory", "size", "fidelity")
    assert all(value_of(point, "quality_drop") is None for point in report.points)
    with pytest.raises(UsageError, match="needs ground truth"):
        sweep([exact], bare, [], tmp_path / "out", replace(QUICK, wish="quality_drop<1dB"))


# What is kept


def test_what_was_measured_is_not_measured_again(
    exact: Bundle, half: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    out = tmp_path / "out"
    first = sweep([exact], photos, [parse_axis("steps=6,1")], out, QUICK)
    assert without_processes == ["exact 6", "exact 1"]
    again = sweep([exact], photos, [parse_axis("steps=6,1")], out, QUICK)
    assert len(without_processes) == 2
    assert msgspec.structs.replace(again, created="") == msgspec.structs.replace(first, created="")
    wider = sweep([exact, half], photos, [parse_axis("steps=1,3")], out, QUICK)
    assert without_processes[2:] == ["exact 3", "half 1", "half 3"]
    assert wider.points[0].result == first.points[1].result
    sweep([exact], photos, [parse_axis("steps=6")], out, replace(QUICK, runs=2))
    assert without_processes[5:] == ["exact 6"]  # two runs are another measurement
    (photos_changed := tmp_path / "changed").mkdir()
    make_dataset(photos_changed, 3)
    sweep([exact], photos_changed, [parse_axis("steps=6")], out, QUICK)
    assert without_processes[6:] == ["exact 6"]  # and so are other images
    fresh = replace(QUICK, run=replace(QUICK.run, fresh=True))
    sweep([exact], photos, [parse_axis("steps=6")], out, fresh)
    assert without_processes[7:] == ["exact 6"]


def test_points_with_the_same_pictures_share_them(
    exact: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    report = sweep(
        [exact], photos, [parse_axis("residency=all,phases,mapped"), parse_axis("steps=3")], tmp_path / "out", QUICK
    )
    assert len(report.points) == len(without_processes) == 3
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3  # the exact one, that of three steps, and mapped


def test_a_sweep_that_was_ended_goes_on(
    exact: Bundle,
    half: Bundle,
    photos: Path,
    tmp_path: Path,
    without_processes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes = [parse_axis("steps=6,1")]
    wanted = sweep([exact, half], photos, axes, tmp_path / "whole", QUICK)
    measure = points_at_work.measure_photo
    for _ in range(2):
        calls = len(without_processes)

        def end_at_the_second(*given: Any, calls: int = calls, **others: Any) -> Any:
            if len(without_processes) - calls == 1:
                raise KeyboardInterrupt
            return measure(*given, **others)

        monkeypatch.setattr(points_at_work, "measure_photo", end_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            sweep([exact, half], photos, axes, tmp_path / "ended", QUICK)
        assert not (tmp_path / "ended" / "sweep.json").exists()
    monkeypatch.setattr(points_at_work, "measure_photo", measure)
    found = sweep([exact, half], photos, axes, tmp_path / "ended", QUICK)
    assert len(without_processes) == 8
    assert msgspec.structs.replace(found, created="") == msgspec.structs.replace(wanted, created="")
    pages = [(tmp_path / name / "sweep.html").read_text() for name in ("whole", "ended")]
    assert pages[0].replace(wanted.created, "") == pages[1].replace(found.created, "")


def test_a_point_that_fails_is_reported_and_tried_again(
    exact: Bundle,
    half: Bundle,
    photos: Path,
    tmp_path: Path,
    without_processes: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    axes, out = [parse_axis("steps=6,1")], tmp_path / "out"
    measure = points_at_work.measure_photo

    def fail_with_half(bundle: Bundle, settings: RestoreOptions, *given: Any, **others: Any) -> Any:
        if bundle.path == half.path and settings.steps == 6:
            raise ResourceError("memory ran out", fix="use less")
        return measure(bundle, settings, *given, **others)

    monkeypatch.setattr(points_at_work, "measure_photo", fail_with_half)
    report = sweep([exact, half], photos, axes, out, QUICK)
    assert [point.result.status for point in report.points] == ["ok", "ok", "failed", "ok"]
    assert report.points[2].result.error == "memory ran out"
    assert "memory ran out" in (out / "sweep.html").read_text()
    assert not report.points[2].front
    monkeypatch.setattr(points_at_work, "measure_photo", measure)
    assert {point.result.status for point in sweep([exact, half], photos, axes, out, QUICK).points} == {"ok"}
    assert len(without_processes) == 4


def test_an_engine_that_does_not_open_fails_its_points_only(
    exact: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    broken = make_fake_bundle(tmp_path / "broken", dtype="float16", seed=1)
    graph = broken.path / broken.graph(next(iter(broken.manifest.model.stages)), TILE).path
    graph.write_bytes(b"no graph")
    report = sweep([exact, broken], photos, [parse_axis("steps=6,1")], tmp_path / "out", QUICK)
    assert [point.result.status for point in report.points] == ["ok", "ok", "failed", "failed"]
    assert all(point.result.error for point in report.points[2:])


def test_a_process_that_went_on_with_less_memory_is_no_measurement(
    half: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, photo = (photos / part / "photo000.png" for part in ("lr", "ref"))
    said: dict[str, Any] = {"seconds": 2.0, "width": 112, "height": 96, "metadata": {}}
    said["timings"] = {"tile_seconds": [1.0], "stages": {"load:flow": {"seconds": 0.5, "count": 1}}}
    monkeypatch.setattr(memory, "measure_process", lambda *_, **__: ProcessCost(0, 2.0, 10**8, json.dumps(said), ""))
    write_image(tmp_path / "restored.png", np.zeros((96, 112, 3), np.uint8))
    given = (half, ONE_THREAD, LivePhoto(frame, photo), tmp_path / "restored.png")
    assert cost_of_run(*given, as_asked=True).load_s == 0.5
    said["metadata"] = {"memory_fallbacks": ["2 tiles at once"]}
    assert cost_of_run(*given).photo_s == 2.0
    with pytest.raises(ResourceError, match="it went on otherwise: 2 tiles at once"):
        cost_of_run(*given, as_asked=True)


@pytest.mark.usefixtures("without_processes")
def test_images_that_fail_do_not_count(
    exact: Bundle, half: Bundle, tmp_path: Path, without_processes: list[str]
) -> None:
    make_dataset(tmp_path / "photos", 3)
    small = Photo(np.full((32, 32, 3), 7, np.uint8))
    for part in ("lr", "ref", "ref_lr", "gt"):
        write_image(tmp_path / "photos" / part / "photo001.png", small.pixels)
    report = sweep([exact, half], tmp_path / "photos", [], tmp_path / "out", QUICK)
    quality = report.points[1].result.quality
    assert quality is not None
    assert (quality.images, quality.failed) == (2, 1)


def test_mistakes_end_a_sweep_before_it_begins(
    exact: Bundle, half: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    out = tmp_path / "out"
    for options, said in (
        (replace(QUICK, wish="memory<8"), "a unit is expected"),
        (replace(QUICK, photo="photo007"), "no photo 'photo007'"),
        (replace(QUICK, runs=0), "measure nothing"),
    ):
        with pytest.raises(UsageError, match=said):
            sweep([exact], photos, [], out, options)
    with pytest.raises(UsageError, match="no bundle"):
        sweep([], photos, [], out, QUICK)
    with pytest.raises(ImageError):
        sweep([exact], tmp_path / "nowhere", [], out, QUICK)
    assert without_processes == []


# The command, with real processes


def command(*bundles: Bundle, data: Path, out: Path, more: Sequence[str] = ()) -> list[str]:
    paths = [str(bundle.path) for bundle in bundles]
    return ["profile", *paths, "--dataset", str(data), "-o", str(out), "--runs", "1", "--threads", "1", *more]


def test_the_command_measures_picks_and_says_how_to_restore(
    exact: Bundle, half: Bundle, photos: Path, tmp_path: Path
) -> None:
    more = ["--sweep", "steps=6,1", "--pick", "memory<64GB, fidelity>20dB, min size", "--json", "--limit", "1"]
    done = run(*command(exact, half, data=photos, out=tmp_path / "out", more=more))
    assert done.exit_code == 0, done.output
    report = msgspec.json.decode(done.stdout, type=SweepReport)
    assert report == msgspec.json.decode((tmp_path / "out" / "sweep.json").read_bytes(), type=SweepReport)
    assert len(report.points) == 4
    for point in report.points:
        assert 1e7 < (value_of(point, "memory") or 0) < 4e9
        assert 0 < (value_of(point, "warm_latency") or 0) < (value_of(point, "latency") or 0)
    assert report.pick is not None
    (winner,) = [point for point in report.points if point.id == report.pick.point]
    assert winner.bundle == "half"
    words = shlex.split(winner.command)[1:]
    written = words.index("restored.png")
    restored = []
    for name, options in (
        ("typed", words[written + 1 :]),
        ("picked", ["--profile", str(tmp_path / "out" / "picked.toml")]),
    ):
        output = tmp_path / f"{name}.png"
        result = run(*words[:written], output, *options)
        assert result.exit_code == 0, result.output
        restored.append(read_photo(output))
    assert np.array_equal(restored[0].pixels, restored[1].pixels)
    inputs = [read_photo(photos / part / "photo000.png") for part in ("lr", "ref")]
    crop = find_crop(inputs[0], inputs[1].size)
    assert (tmp_path / "out" / str(winner.result.crop)).read_bytes() == crop.of(restored[0])


def test_what_cannot_be_is_one_error_and_exit_code_2(exact: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused = run(*command(exact, data=photos, out=out, more=["--sweep", "steps=6,9", "--json"]))
    assert refused.exit_code == 2
    assert "exact steps=9: 9 steps were asked for" in error_of(refused)["message"]
    assert not out.exists()
    assert run(*command(exact, data=photos, out=out, more=["--sweep", "step=6"])).exit_code == 2
    assert run(*command(exact, data=photos, out=out, more=["--pick", "memory<8"])).exit_code == 2


@pytest.mark.usefixtures("without_processes")
def test_exit_code_1_where_nothing_can_be_picked(exact: Bundle, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "picked.toml").write_text("of an earlier sweep")
    done = run(*command(exact, data=photos, out=tmp_path / "out", more=["--pick", "memory<1MB"]))
    assert done.exit_code == 1
    assert "nothing picked: no point fits: exact comes nearest and misses memory<1MB (it has 95.4 MiB)" in done.output
    assert not (tmp_path / "out" / "picked.toml").exists()
    assert run(*command(exact, data=photos, out=tmp_path / "out")).exit_code == 0


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_sweep_ends_with_the_same_report(exact: Bundle, half: Bundle, photos: Path, tmp_path: Path) -> None:
    arguments = command(exact, half, data=photos, out=tmp_path / "killed", more=["--sweep", "steps=6,3,1"])
    killed = tmp_path / "killed" / "points"
    for count in (1, 4):
        process = subprocess.Popen(
            [sys.executable, "-m", "livemoments", *arguments], start_new_session=True, stdout=subprocess.DEVNULL
        )
        while len(list(killed.glob("*.json"))) < count:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "sweep.json").exists()
    finished = {file.name: file.read_bytes() for file in killed.glob("*.json")}
    reports = []
    for out in (tmp_path / "killed", tmp_path / "whole"):
        done = run(*command(exact, half, data=photos, out=out, more=["--sweep", "steps=6,3,1", "--json"]))
        assert done.exit_code == 0, done.output
        reports.append(msgspec.json.decode(done.stdout, type=SweepReport))
    assert len(finished) >= 4
    assert all((killed / name).read_bytes() == data for name, data in finished.items())
    assert without_times(reports[0]) == without_times(reports[1])


@pytest.mark.slow
@pytest.mark.process
def test_a_cluster_gives_the_same_quality(
    exact: Bundle, half: Bundle, photos: Path, tmp_path: Path, without_processes: list[str]
) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    axes = [parse_axis("steps=6,1")]
    on_ray = replace(QUICK, run=replace(QUICK.run, engine="ray"))
    found = sweep([exact, half], photos, axes, tmp_path / "ray", on_ray)
    wanted = sweep([exact, half], photos, axes, tmp_path / "here", QUICK)
    assert without_times(found) == without_times(wanted)
    assert len(without_processes) == 8


def without_times(report: SweepReport) -> SweepReport:
    """What two sweeps over the same have in common: all but times, memory, and what follows from them."""
    points = [
        msgspec.structs.replace(point, front=False, result=msgspec.structs.replace(point.result, cost=None))
        for point in report.points
    ]
    return msgspec.structs.replace(report, created="", command="", points=tuple(points))
