"""``livemoments frames`` and ``livemoments restore --live`` as a user types them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_support import run
from live_photo_files import (
    IDENTIFIER,
    KEY_FRAME,
    RATE,
    exif_block,
    google_photo,
    movie_bytes,
    photo_and_frames,
    still_bytes,
    write,
    write_pair,
)

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.distances import psnr_db
from livemoments.runtime.image_files.exif import content_identifier
from livemoments.runtime.image_files.photo import read_photo
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
PHOTO, FRAMES = photo_and_frames(SEED, photo_size=Size(96, 128), video_size=Size(96, 128))


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_pair(tmp_path, PHOTO, FRAMES, kind="HEIF")[0]


def test_frames_lists_the_clip_and_writes_a_page(pair: Path) -> None:
    result = run("frames", pair, "-o", "moments.html")
    assert result.exit_code == 0, result.output
    assert "Apple Live Photo, 9 frames of 128x96, key frame 4" in result.output
    page = Path("moments.html").read_text()
    assert page.count("data-frame=") >= len(FRAMES)
    assert f"livemoments restore --live {pair} --at 0.200s" in page
    document = json.loads(run("frames", pair, "--json").stdout)
    assert (document["kind"], document["key_frame"], len(document["frames"])) == ("Apple Live Photo", KEY_FRAME, 9)
    assert document["frames"][6]["time_s"] == pytest.approx(6 / RATE, abs=1e-3)
    best = json.loads(run("frames", pair, "--json", "--best").stdout)
    assert [frame["index"] for frame in best["frames"]] == [document["best"]]


def test_the_shortest_command(pair: Path) -> None:
    """No bundle, no output: the small network, and a name of its own beside where the user is."""
    before = {path.name: path.read_bytes() for path in pair.parent.iterdir()}
    result = run("restore", "--live", pair, "--at", "0.2s", "--steps", 1)
    assert result.exit_code == 0, result.output
    written = read_photo("IMG_0001-0.200s.heic")
    assert written.size == read_photo(pair).size
    assert psnr_db(written.pixels, FRAMES[6], 255.0) > 20
    assert psnr_db(written.pixels, FRAMES[6], 255.0) > psnr_db(written.pixels, FRAMES[KEY_FRAME], 255.0)
    assert content_identifier(written.exif) is None  # alone it belongs to no video
    assert {name: (pair.parent / name).read_bytes() for name in before} == before
    again = run("restore", "--live", pair, "--at", "0.2s", "--steps", 1)
    assert again.exit_code == 2
    assert "exists" in again.output


def test_several_moments_of_a_motion_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "PXL.MP.jpg", google_photo(PHOTO, movie_bytes(FRAMES), exif=exif_block()))
    result = run(
        "restore", "--live", "PXL.MP.jpg", "--at", "0s", "--at", "200ms", "--steps", 1, "-o", "o.jpg", "--json"
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [moment["output"] for moment in document["moments"]] == ["o-0.000s.jpg", "o-0.200s.jpg"]
    assert document["live"]["kind"] == "Motion Photo"
    assert document["moments"][1]["metadata"]["origin"]["frame"] == 6
    first, second = (read_photo(moment["output"]) for moment in document["moments"])
    assert psnr_db(first.pixels, FRAMES[0], 255.0) > psnr_db(second.pixels, FRAMES[0], 255.0)
    assert b"MotionPhoto" not in Path("o-0.000s.jpg").read_bytes()


def test_moments_share_keys_and_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a scene in which nothing moves every tile's reference is the same: ReferenceNet does not run again."""
    monkeypatch.chdir(tmp_path)
    write_pair(tmp_path, PHOTO, [FRAMES[KEY_FRAME]] * len(FRAMES))
    arguments = ["--at", "0.1s", "--at", "0.2s", "--steps", 1, "--json"]
    first, second = json.loads(run("restore", "--live", "IMG_0001.JPG", *arguments).stdout)["moments"]
    assert first["timings"]["stages"]["reference"]["count"] > 0
    assert second["timings"]["stages"].get("reference", {"count": 0})["count"] == 0


def test_frame_and_best_choose(pair: Path) -> None:
    by_number = run("restore", "--live", pair, "--frame", 6, "--steps", 1, "-o", "a.png", "--json")
    assert json.loads(by_number.stdout)["moments"][0]["frame"] == 6
    by_score = run("restore", "--live", pair, "--best", "--steps", 1, "-o", "b.png", "--json")
    assert by_score.exit_code == 0, by_score.output
    listed = json.loads(run("frames", pair, "--json").stdout)
    assert json.loads(by_score.stdout)["moments"][0]["frame"] == listed["best"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "which moment"),
        (("--at", "0.1s", "--best"), "exclude each other"),
        (("--frame", "a.png"), "a number"),
        (("--frame", "99"), "there is no frame 99"),
        (("--at", "9s"), "outside the clip"),
        (("--at", "soon"), "not a time"),
        (("--at", "0s", "--photo", "x.png"), "brings its own photo"),
        (("--at", "0s", "-o", "IMG_0001.HEIC"), "the Live Photo itself"),
        (("--at", "0s", "-o", "IMG_0001.gif"), "not an image format"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(pair: Path, arguments: tuple[str, ...], words: str) -> None:
    before = {path.name: path.read_bytes() for path in pair.parent.iterdir()}
    result = run("restore", "--live", pair, *arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert {path.name: path.read_bytes() for path in pair.parent.iterdir()} == before


def test_live_options_without_live() -> None:
    assert "go with --live" in run("restore", "bundle", "--best").output
    assert "--live" in run("restore", "--frame", "a.png").output


def test_a_pair_that_does_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", still_bytes(PHOTO, exif=exif_block(identifier=IDENTIFIER)))
    write(tmp_path / "a.mp4", movie_bytes(FRAMES))
    refused = run("frames", tmp_path / "a.jpg")
    assert refused.exit_code == 2
    assert "only a.jpg has a content identifier" in refused.output
    assert run("frames", tmp_path / "a.jpg", "--force").exit_code == 0
