"""Sets built from videos and photographs: the same bytes every time, killed or not; what the manifest says is true."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from synlive_videos import moving_frames, tree_bytes, write_video

from livemoments.cli.synlive import command
from livemoments.errors import FileError, ImageError, OutputError, UsageError
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.simulated_clip import synthetic_photograph
from livemoments.store.claims import only_one
from livemoments.types import Size
from livemoments.validate.datasets.index import open_dataset
from livemoments.validate.synlive.build import build_set
from livemoments.validate.synlive.check import check_set
from livemoments.validate.synlive.clips import VideoClip
from livemoments.validate.synlive.codec import Codec, through_codec
from livemoments.validate.synlive.degradation import Degradation, apply, image_rng
from livemoments.validate.synlive.manifest import Pair, read_manifest

CROP = Size(128, 160)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips that move, one that has a cut in its middle, one that stands still."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "first.mp4", moving_frames(40, seed=1))
    write_video(folder / "Second clip!.mp4", moving_frames(40, seed=2, step_px=3))
    write_video(folder / "cut.mp4", moving_frames(10, seed=3) + moving_frames(10, seed=4))
    write_video(folder / "still.mp4", moving_frames(20, seed=5, step_px=0))
    return folder


@pytest.fixture(scope="module")
def built(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "set"
    build_set(videos, folder, count=8, crop=CROP, seed=3)
    return folder


def pixels_of(folder: Path, part: str, pair: Pair) -> np.ndarray:
    return read_photo(folder / part / f"{pair.name}.png").pixels


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_set_is_what_its_manifest_says(videos: Path, built: Path) -> None:
    manifest = read_manifest(built)
    dataset = open_dataset(built)
    assert [item.name for item in dataset.items] == [pair.name for pair in manifest.pairs]
    assert (len(dataset.items), dataset.rejected, dataset.has_truth) == (8, (), True)
    for pair in manifest.pairs:
        clip = VideoClip(videos / pair.source, pair.source)
        x, y, width, height = pair.crop
        assert (width, height) == (160, 128)
        assert {pair.key_frame, pair.frame} == {pair.start, pair.start + 5}
        for part, index in (("ref", pair.key_frame), ("gt", pair.frame)):
            frame = next(clip.read(index, index))
            np.testing.assert_array_equal(pixels_of(built, part, pair), frame[y : y + height, x : x + width])
        assert isinstance(pair.degradation, Degradation)
        place = next(source.sha256 for source in manifest.sources if source.name == pair.source) + f":{pair.start}"
        for part, clean in (("lr", "gt"), ("ref_lr", "ref")):
            again = apply(pair.degradation, pixels_of(built, clean, pair), image_rng(3, f"noise:{part}:{place}"))
            np.testing.assert_array_equal(pixels_of(built, part, pair), again)
    assert {pair.key_frame < pair.frame for pair in manifest.pairs} == {True, False}
    by_source: dict[str, list[int]] = {}
    for pair in manifest.pairs:
        by_source.setdefault(pair.source, []).append(pair.start)
    assert set(by_source) == {"first.mp4", "Second clip!.mp4", "cut.mp4"}
    assert len(by_source["first.mp4"]) >= 2
    for starts in by_source.values():
        assert all(abs(a - b) >= 5 for a in starts for b in starts if a is not b)
    assert all(start <= 4 or start >= 10 for start in by_source["cut.mp4"])
    reasons = {(skip.source, skip.reason.split(" (")[0]) for skip in manifest.skipped}
    assert ("still.mp4", "still scene") in reasons
    assert manifest.pairs[0].name.startswith("0001_")
    assert all(pair.name.isascii() and " " not in pair.name for pair in manifest.pairs)


def test_two_builds_are_equal_to_the_byte(videos: Path, built: Path, tmp_path: Path) -> None:
    again = build_set(videos, tmp_path / "again", count=8, crop=CROP, seed=3)
    assert again.resumed == 0
    assert tree_bytes(tmp_path / "again") == tree_bytes(built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again"]
    other = build_set(videos, tmp_path / "other", count=2, crop=CROP, seed=4).manifest
    assert other.pairs[0].degradation != read_manifest(built).pairs[0].degradation


def test_fewer_pairs_are_the_first_of_more(videos: Path, built: Path, tmp_path: Path) -> None:
    few = build_set(videos, tmp_path / "few", count=3, crop=CROP, seed=3).manifest
    assert few.pairs == read_manifest(built).pairs[:3]
    assert tree_bytes(tmp_path / "few" / "lr").items() <= tree_bytes(built / "lr").items()


_SCRIPT = """
import sys
from livemoments.types import Size
from livemoments.validate.synlive.build import build_set
build_set(sys.argv[1], sys.argv[2], count=8, crop=Size(128, 160), seed=3)
"""


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(videos: Path, built: Path, tmp_path: Path) -> None:
    journal = tmp_path / ".set.unfinished" / "journal.jsonl"

    def finished() -> int:
        return journal.read_bytes().count(b'"pair"') if journal.exists() else 0

    before = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(videos), str(tmp_path / "set")])
        deadline = time.monotonic() + 60
        while finished() < before + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it had finished already"
        before = finished()
        assert 0 < before < 8
        assert not (tmp_path / "set").exists()
    # what a kill in the middle of writing leaves
    with journal.open("ab") as stream:
        stream.write(b'{"pair":{"name":"0009_half')
    stray = tmp_path / ".set.unfinished" / "set" / "lr" / "9999_stray.png"
    stray.write_bytes(b"half an image")
    damaged = next((tmp_path / ".set.unfinished" / "set" / "gt").glob("0001_*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    result = build_set(videos, tmp_path / "set", count=8, crop=CROP, seed=3)
    assert result.resumed == before - 1
    assert tree_bytes(tmp_path / "set") == tree_bytes(built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_what_another_build_left_is_not_mixed_in(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gave \d+ of 500 pairs; left out: .*still scene") as caught:
        build_set(videos, tmp_path / "set", count=500, crop=CROP, gap=9)
    found = int(caught.value.message.split("gave ")[1].split()[0])
    assert f"--count {found} or less" in (caught.value.fix or "")
    assert (tmp_path / ".set.unfinished").is_dir()
    result = build_set(videos, tmp_path / "set", count=2, crop=CROP, gap=9)
    assert result.resumed == 2, "the same settings: finished pairs are kept"
    assert len(open_dataset(tmp_path / "set").items) == 2
    assert not (tmp_path / ".set.unfinished").exists()
    with pytest.raises(ImageError, match="of 500 pairs"):
        build_set(videos, tmp_path / "second", count=500, crop=CROP, gap=9)
    assert build_set(videos, tmp_path / "second", count=2, crop=CROP, gap=9, seed=1).resumed == 0


def test_only_one_build_at_a_time(videos: Path, tmp_path: Path) -> None:
    partial = tmp_path / ".set.unfinished"
    partial.mkdir()
    with only_one(partial / "lock"), pytest.raises(OutputError, match="another build is writing there"):
        build_set(videos, tmp_path / "set", count=1, crop=CROP)


def test_other_folders_are_never_replaced(videos: Path, built: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "manifest.json").write_text('{"holiday": 1}')
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="exists already and is not a set"):
            build_set(videos, mine, count=1, crop=CROP, overwrite=overwrite)
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    with pytest.raises(OutputError, match="exists already") as caught:
        build_set(videos, copy, count=1, crop=CROP)
    assert "--overwrite" in (caught.value.fix or "")
    assert tree_bytes(copy) == tree_bytes(built)
    build_set(videos, copy, count=1, crop=CROP, overwrite=True)
    assert len(read_manifest(copy).pairs) == 1
    assert len(list((copy / "gt").iterdir())) == 1


def test_a_place_that_cannot_be_written_is_refused_at_once(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        build_set(tmp_path / "none", tmp_path / "file" / "set", count=1, crop=CROP)
    with pytest.raises(ImageError, match="is a file"):
        build_set(tmp_path / "file", tmp_path / "set", count=1, crop=CROP)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_settings_that_cannot_be_used(videos: Path, tmp_path: Path) -> None:
    for match, options in (
        ("'film' is not a degradation", {"degradation": "film"}),
        ("neighbouring frames", {"degradation": "codec", "photographs": True}),
        ("multiples of 4", {"degradation": "codec", "crop": Size(130, 160)}),
        ("multiples of 2", {"crop": Size(129, 160)}),
        ("sides of 128 pixels or more", {"crop": Size(64, 160)}),
        ("count of 0", {"count": 0}),
        ("gap of 0", {"gap": 0}),
        ("negative", {"seed": -1}),
        ("3 times smaller", {"crop": None, "scale": 3}),
    ):
        with pytest.raises(UsageError) as caught:
            build_set(videos, tmp_path / "set", **({"crop": CROP} | options))  # type: ignore[arg-type]
        assert match in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_damaged_places_of_a_video_are_left_out(videos: Path, tmp_path: Path) -> None:
    options = {"g": "8", "bf": "0", "crf": "10", "preset": "veryfast"}
    whole = write_video(tmp_path / "whole" / "clip.mkv", moving_frames(60, seed=6), options=options)
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "clip.mkv").write_bytes(data)
    manifest = build_set(tmp_path / "broken", tmp_path / "set", count=4, crop=CROP).manifest
    assert len(manifest.pairs) == 4
    clean = VideoClip(whole, "whole")
    for pair in manifest.pairs:
        x, y, width, height = pair.crop
        x0 = next(clean.read(pair.frame, pair.frame))[y : y + height, x : x + width]
        assert pixels_of(tmp_path / "set", "gt", pair).shape == x0.shape


def test_whole_frames_through_the_codec(videos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    manifest = build_set(videos / ".", folder, count=2, crop=None, degradation="codec").manifest
    for pair in manifest.pairs:
        assert isinstance(pair.degradation, Codec)
        assert pair.crop == (0, 0, 256, 192)
        assert pair.coded_bits_per_pixel is not None
        clip = VideoClip(videos / pair.source, pair.source)
        first, last = max(0, pair.start - 8), min(clip.info.frames - 1, pair.start + 7)
        frames, bits = through_codec(pair.degradation, list(clip.read(first, last)), rate=clip.info.rate)
        assert bits == pytest.approx(pair.coded_bits_per_pixel, abs=1e-4)
        np.testing.assert_array_equal(pixels_of(folder, "lr", pair), frames[pair.frame - first])
        np.testing.assert_array_equal(pixels_of(folder, "ref_lr", pair), frames[pair.key_frame - first])


def test_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # not needed
    for number in range(2):
        picture = cv2.GaussianBlur(synthetic_photograph(Size(300, 400), seed=number), (0, 0), 1)
        write_image(tmp_path / "photos" / "trip" / f"{number}.jpg", picture)
    folder = tmp_path / "set"
    manifest = build_set(tmp_path / "photos", folder, photographs=True, count=5, crop=CROP).manifest
    assert [pair.source for pair in manifest.pairs].count("trip/0.jpg") in (2, 3)
    truths = [pixels_of(folder, "gt", pair) for pair in manifest.pairs]
    assert all((a != b).any() for n, a in enumerate(truths) for b in truths[:n])
    for pair, truth in zip(manifest.pairs, truths, strict=True):
        assert pixels_of(folder, "ref", pair).shape == truth.shape == (128, 160, 3)
        assert pixels_of(folder, "lr", pair).shape == pixels_of(folder, "ref_lr", pair).shape == (64, 80, 3)
    build_set(tmp_path / "photos", tmp_path / "again", photographs=True, count=5, crop=CROP)
    assert tree_bytes(tmp_path / "again") == tree_bytes(folder)
    whole = build_set(tmp_path / "photos", tmp_path / "whole", photographs=True, crop=None)
    assert len(whole.manifest.pairs) == 2
    with pytest.raises(ImageError, match="2 of 2 photographs cannot be used"):
        build_set(tmp_path / "photos", tmp_path / "large", photographs=True, crop=Size(512, 512))


# --- check and the command line


def test_check_names_what_is_wrong(built: Path, tmp_path: Path) -> None:
    found = check_set(built)
    assert found.passed
    assert found.sha256 == open_dataset(built).sha256
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    names = [pair.name for pair in read_manifest(copy).pairs]
    with (copy / "lr" / f"{names[0]}.png").open("r+b") as stream:
        stream.seek(500)
        byte = stream.read(1)
        stream.seek(500)
        stream.write(bytes([byte[0] ^ 1]))
    (copy / "gt" / f"{names[1]}.png").unlink()
    write_image(copy / "ref" / "extra.png", np.zeros((64, 64, 3), np.uint8))
    found = check_set(copy)
    assert set(found.problems) == {
        f"lr/{names[0]}.png: was changed or damaged (another SHA-256)",
        f"gt/{names[1]}.png: missing",
        "ref/extra.png: is not in the manifest",
    }
    assert not found.passed
    result = run("check", copy)
    assert result.exit_code == 1
    assert "3 problems in 8 pairs" in result.output
    document = json.loads(run("check", copy, "--json").stdout)
    assert (document["passed"], len(document["problems"])) == (False, 3)
    with pytest.raises(FileError, match=r"manifest\.json: cannot be read"):
        check_set(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(FileError, match="is not a set's manifest"):
        check_set(tmp_path)


def test_check_decodes_images_whose_hashes_are_right(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    manifest = read_manifest(copy)
    file = copy / "gt" / f"{manifest.pairs[0].name}.png"
    old = manifest.pairs[0].files["gt"]
    write_image(file, np.zeros((64, 80, 3), np.uint8))
    text = (copy / "manifest.json").read_text().replace(old.sha256, hashlib.sha256(file.read_bytes()).hexdigest())
    (copy / "manifest.json").write_text(text.replace(f'"bytes": {old.bytes}', f'"bytes": {file.stat().st_size}'))
    (problem,) = check_set(copy).problems
    assert "the ground truth is 80x64" in problem


def test_the_command(videos: Path, built: Path, tmp_path: Path) -> None:
    common = ("build", "--videos", videos, "--count", 8, "--crop", "160x128", "--seed", 3, "-o")
    result = run(*common, tmp_path / "set")
    assert result.exit_code == 0, result.output
    assert "8 pairs from 3 videos" in result.output
    assert "left out: still, cut, empty or damaged" in result.output
    assert tree_bytes(tmp_path / "set") == tree_bytes(built)
    (tmp_path / "more").mkdir()
    os.link(videos / "first.mp4", tmp_path / "more" / "a.mp4")
    (tmp_path / "more" / "b.mp4").write_text("nothing")
    arguments = ("build", "--videos", tmp_path / "more", "--crop", "160x128", "-o", tmp_path / "more-set")
    refused = run(*arguments)
    assert isinstance(refused.exception, ImageError)
    document = json.loads(run(*arguments, "--skip-unusable", "--json").stdout)
    assert (document["pairs"], document["resumed"], list(document["unusable"])) == (1, 0, ["b.mp4"])
    assert run("build", "-o", tmp_path / "x").exit_code == 2
    assert run("build", "--videos", videos, "-o", tmp_path / "x", "--crop", "wide").exit_code == 2
    assert "8 pairs (live-photo, x2, seed 3)" in run("check", built).output


def test_a_missing_extra_is_named(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    result = run("build", "--videos", videos, "-o", tmp_path / "set")
    assert "livemoments-deploy[synlive]" in str(result.exception)


def test_no_torch_is_needed() -> None:
    names = "livemoments.validate.synlive.build, livemoments.validate.datasets.embedded"
    code = f"import {names}, sys; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "'livemoments.validate.synlive.build'" in modules
    assert not any(f"'{name}'" in modules for name in ("torch", "onnx", "av", "skimage"))
