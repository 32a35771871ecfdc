"""The demonstration, whole; the simulated clip; the picture."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from livemoments.demo import run_demo
from livemoments.errors import ImageError, OutputError, UsageError
from livemoments.types import Size
from livemoments.validate.picture import write_comparison
from livemoments.validate.simulated_clip import simulate_live_photo, synthetic_photograph


@pytest.mark.slow
def test_the_demo_goes_the_whole_way_and_can_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        report = run_demo(tmp_path / "demo")
    assert report.passed
    assert report.tiles > 1
    assert 0 < report.tile_s < report.wall_s
    assert report.peak_rss_bytes > 100_000_000
    json.dumps(report.to_json())
    assert report.psnr_db is not None
    assert report.bicubic_psnr_db is not None
    assert report.psnr_db > report.bicubic_psnr_db + 1
    assert "against the upscaled frame" in report.to_text()
    picture = np.asarray(Image.open(report.picture))
    assert picture.shape[1] > 1000
    assert picture.std() > 20


@pytest.mark.slow
def test_the_demo_takes_the_users_own_images(tmp_path: Path) -> None:
    live = simulate_live_photo(synthetic_photograph(Size(700, 900)), seed=2)
    for name in ("photo", "frame"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), getattr(live, name))
    report = run_demo(tmp_path / "demo", photo=tmp_path / "photo.png", frame=tmp_path / "frame.png")
    assert report.passed
    assert report.psnr_db is None
    assert "against the upscaled frame" not in report.to_text()


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
