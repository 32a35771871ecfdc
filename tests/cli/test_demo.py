"""The demonstration, whole; the simulated clip; the picture."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from livemoments.bundle import Bundle
from livemoments.demo import DemoReport, run_demo
from livemoments.demo_images import load_images
from livemoments.demo_picture import write_comparison
from livemoments.errors import ImageError, OutputError, UsageError
from livemoments.progress import SILENT, Task
from livemoments.simulated_clip import simulate_live_photo, synthetic_photograph
from livemoments.types import Size


class Sayings:
    """A reporter that keeps what is said, and the titles of the work between."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        with SILENT.task(title, total) as task:
            yield task

    def say(self, line: str) -> None:
        self.said.append(line)


def check(report: DemoReport, said: list[str]) -> None:
    assert report.passed
    assert report.tiles > 1
    json.dumps(report.to_json())
    assert report.psnr_db is not None
    assert report.bicubic_psnr_db is not None
    assert report.psnr_db > report.bicubic_psnr_db + 1
    assert report.page.is_file()
    picture = np.asarray(Image.open(report.picture))
    assert picture.shape[1] > 1000
    assert picture.std() > 20
    cost = report.validation.cost
    assert cost is not None
    assert 0 < cost.tile_s["p50"] < (cost.photo_s or 0)
    assert next(memory.bytes or 0 for memory in cost.memory if memory.kind == "peak_rss") > 100_000_000
    assert re.match(r"about \d+ (s|min) here: ", said[0])
    assert "against the upscaled frame" in said[1]


@pytest.mark.slow
def test_the_short_demo_shows_the_picture_first_and_needs_no_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "diffusers", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises
    progress = Sayings()
    report = run_demo(tmp_path / "demo", progress=progress)
    check(report, progress.said)
    assert [line.split()[0] for line in progress.said[1:]] == ["restored:", "parity:", "quality:", "cost:"]
    assert "--full" in progress.said[0], "what is shortened is said"
    assert {rung.level for rung in report.validation.ladder} == {"block", "network", "step", "tile", "photo"}
    assert report.validation.reference == "recording recording of small"


@pytest.mark.slow
def test_the_full_demo_goes_the_whole_way_and_can_be_repeated(tmp_path: Path) -> None:
    progress = Sayings()
    run_demo(tmp_path / "demo")
    report = run_demo(tmp_path / "demo", full=True, progress=progress)
    check(report, progress.said)
    assert Bundle.open(tmp_path / "demo" / "bundle")
    assert any(rung.name == "tile76.decoded" for rung in report.validation.ladder)
    assert any(line.startswith("self-checks: ") for line in progress.said)
    assert report.validation.cost is not None
    assert report.validation.cost.stages


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_the_demo_takes_the_users_own_images(tmp_path: Path, full: bool) -> None:
    live = simulate_live_photo(synthetic_photograph(Size(300, 380)), seed=2)
    for name in ("photo", "frame"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), getattr(live, name))
    report = run_demo(tmp_path / "demo", photo=tmp_path / "photo.png", frame=tmp_path / "frame.png", full=full)
    assert report.passed
    assert report.psnr_db is None


def test_a_part_of_the_images_is_the_same_part(tmp_path: Path) -> None:
    live = simulate_live_photo(synthetic_photograph(Size(500, 700)), seed=2)
    for name in ("photo", "frame"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), getattr(live, name)[..., ::-1])
    part = Size(256, 304)
    cut = load_images(tmp_path / "photo.png", tmp_path / "frame.png", part=part)
    assert cut["photo"].shape == (256, 304, 3)
    assert cut["frame"].shape == (128, 152, 3)
    found = cv2.matchTemplate(live.photo, cut["photo"], cv2.TM_SQDIFF)
    x, y = cv2.minMaxLoc(found)[2]
    assert np.array_equal(cut["photo"], live.photo[y : y + 256, x : x + 304])
    assert np.array_equal(cut["frame"], live.frame[y // 2 : y // 2 + 128, x // 2 : x // 2 + 152])
    whole = load_images(tmp_path / "photo.png", tmp_path / "frame.png")
    assert whole["photo"].shape == live.photo.shape
    assert load_images(tmp_path / "photo.png", None, part=Size(2000, 128))["truth"].shape[1] == 128


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not an earlier demo's"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_missing_photo_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.jpg"):
        run_demo(tmp_path / "demo", photo=tmp_path / "nothing.jpg")
    assert not (tmp_path / "demo").exists()


def test_the_simulated_clip_moves_blurs_and_repeats() -> None:
    source = synthetic_photograph(Size(300, 400), seed=1)
    live, again, other = (simulate_live_photo(source, seed=seed) for seed in (5, 5, 6))
    assert live.photo.shape == live.truth.shape
    assert (live.frame.shape[0] * 2, live.frame.shape[1] * 2) == live.photo.shape[:2]
    assert np.array_equal(live.frame, again.frame)
    assert not np.array_equal(live.frame, other.frame)
    assert np.abs(live.truth.astype(int) - live.photo).mean() > 3  # it moved

    def sharpness(image: np.ndarray) -> float:
        return float(cv2.Laplacian(image.astype(np.float32), cv2.CV_32F).std())

    upscaled = cv2.resize(live.frame, live.truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert sharpness(upscaled) < 0.5 * sharpness(live.truth)
    with pytest.raises(UsageError, match="too small"):
        simulate_live_photo(source[:100, :100])


def test_the_comparison_shows_every_panel(tmp_path: Path) -> None:
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    panels = [(name, np.full((60, 90, 3), colour, np.uint8)) for name, colour in colours.items()]
    write_comparison(tmp_path / "picture.png", panels, detail_at=(0.9, 0.1), footer="a footer")
    picture = np.asarray(Image.open(tmp_path / "picture.png"))
    shares = [(picture == colour).all(axis=2).mean() for colour in colours.values()]
    assert all(share > 0.15 for share in shares)
