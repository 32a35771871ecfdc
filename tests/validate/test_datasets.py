"""Data sets: what the index accepts, what it rejects, what it refuses; the embedded set."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from synlive_videos import tree_bytes

from livemoments.distances import psnr_db
from livemoments.errors import ImageError, OutputError, UsageError
from livemoments.quantize.calibrate.photos import read_set
from livemoments.quantize.calibrate.photos import set_sha256 as calibration_sha256
from livemoments.runtime import photo_index
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.types import Size
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.datasets.index import open_dataset

PARTS = ("lr", "ref", "ref_lr", "gt")
PHOTO, FRAME = Size(144, 192), Size(72, 96)


def write_set(folder: Path, names: tuple[str, ...] = ("b", "a", "c"), parts: tuple[str, ...] = PARTS) -> Path:
    rng = np.random.default_rng(5)
    for name in names:
        for part in parts:
            size = FRAME if part.startswith(("lr", "ref_lr")) else PHOTO
            write_image(folder / part / f"{name}.png", rng.integers(0, 256, (size.height, size.width, 3), np.uint8))
    return folder


def test_a_set_is_indexed(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "My set")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    dataset = open_dataset(folder)
    assert [item.name for item in dataset.items] == ["a", "b", "c"]
    assert (dataset.name, dataset.descriptor, dataset.rejected, dataset.has_truth) == ("My set", None, (), True)
    assert dataset.items[1].truth == folder / "gt" / "b.png"
    hashes = [hashlib.sha256((folder / part / "a.png").read_bytes()).hexdigest() for part in PARTS]
    assert dataset.items[0].sha256 == hashlib.sha256("".join(f"{h}\n" for h in hashes).encode()).hexdigest()
    lines = "".join(f"{item.name}:{item.sha256}\n" for item in dataset.items)
    assert dataset.sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_set_without_truth_has_the_calibration_sets_hash(tmp_path: Path) -> None:
    folder = write_set(tmp_path, parts=("lr", "ref", "ref_lr"))
    dataset = open_dataset(folder)
    assert not dataset.has_truth
    assert dataset.items[0].truth is None
    assert dataset.sha256 == calibration_sha256(read_set(folder))
    (folder / "ref_lr").rename(tmp_path / "elsewhere")
    assert open_dataset(folder).items[0].photo_frame is None


def test_bad_images_are_rejected_one_by_one(tmp_path: Path) -> None:
    folder = write_set(tmp_path, ("a", "b", "c", "d", "e"))
    whole = folder / "ref" / "a.png"
    whole.write_bytes(whole.read_bytes()[:3000])
    write_image(folder / "gt" / "b.png", np.zeros((144, 190, 3), np.uint8))
    write_image(folder / "lr" / "c.png", np.zeros((96, 96, 3), np.uint8))
    (folder / "ref_lr" / "d.png").write_text("no image")
    dataset = open_dataset(folder)
    assert [item.name for item in dataset.items] == ["e"]
    reasons = dict(dataset.rejected)
    assert list(reasons) == ["a", "b", "c", "d"]
    assert "ref/a.png" in reasons["a"]
    assert "the ground truth is 190x144, the photo is 192x144" in reasons["b"]
    assert "aspect ratios differ" in reasons["c"]
    assert "ref_lr/d.png" in reasons["d"]
    assert all("\n" not in reason for reason in reasons.values())
    (folder / "gt" / "e.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"not one of its 5 photos can be used; the first: .*a\.png"):
        open_dataset(folder)


def test_what_is_no_set_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder"):
        open_dataset(tmp_path / "nowhere")
    folder = write_set(tmp_path)
    (folder / "gt" / "b.png").unlink()
    with pytest.raises(ImageError, match="there is no gt/b"):
        open_dataset(folder)
    for name in ("a.png", "c.png"):
        (folder / "gt" / name).unlink()
    with pytest.raises(ImageError, match="gt: holds no images"):
        open_dataset(folder)
    with pytest.raises(UsageError, match="limit of 0"):
        open_dataset(folder, limit=0)
    with pytest.raises(UsageError, match="'coco' is not a known data set"):
        open_dataset(folder, descriptor="coco")


def test_a_named_set_must_be_whole(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    with pytest.raises(ImageError, match="holds 3 photos; vivoLive144 has 144"):
        open_dataset(folder, descriptor="vivolive144")
    dataset = open_dataset(folder, descriptor="vivolive144", limit=2)
    assert (dataset.name, dataset.descriptor) == ("vivoLive144", "vivolive144")
    assert [item.name for item in dataset.items] == ["a", "b"]
    (folder / "gt").rename(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="SynLive260 has ground truth"):
        open_dataset(folder, descriptor="synlive260", limit=2)


def test_a_named_set_of_the_right_count_is_accepted(tmp_path: Path) -> None:
    source = write_set(tmp_path / "one", ("x",), ("lr", "ref"))
    for number in range(90):
        for part in ("lr", "ref"):
            place = tmp_path / "set" / part / f"{number:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(source / part / "x.png", place)
    assert len(open_dataset(tmp_path / "set", descriptor="iphonelive90").items) == 90


def test_checked_images_are_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, work = write_set(tmp_path / "set"), tmp_path / "work"
    (folder / "lr" / "c.png").write_bytes(b"no image")
    decoded: list[str] = []
    monkeypatch.setattr(photo_index, "read_photo", lambda path: decoded.append(path.name) or read_photo(path))
    first = open_dataset(folder, work=work)
    assert len(decoded) == 9  # c's first image ends it
    decoded.clear()
    with (work / "checked-images.jsonl").open("a") as stream:
        stream.write('\n{"key": "half of a li')
    assert open_dataset(folder, work=work) == first
    assert decoded == ["c.png"]
    decoded.clear()
    write_image(folder / "gt" / "a.png", np.zeros((144, 192, 3), np.uint8))
    changed = open_dataset(folder, work=work)
    assert sorted(decoded) == ["a.png", "c.png"]
    assert changed.items[0].sha256 != first.items[0].sha256
    assert changed.items[1] == first.items[1]
    decoded.clear()
    assert open_dataset(folder, work=work) == changed
    assert decoded == ["c.png"]
    with pytest.raises(OutputError):
        open_dataset(folder, work=folder / "lr" / "a.png")


def test_the_embedded_set(tmp_path: Path) -> None:
    folder = write_embedded_set(tmp_path / "one", size=Size(192, 256), count=5)
    dataset = open_dataset(folder)
    assert [item.name for item in dataset.items] == [
        "001_astronaut",
        "002_coffee",
        "003_chelsea",
        "004_rocket",
        "005_astronaut",
    ]
    assert dataset.has_truth
    for item in dataset.items:
        assert item.truth is not None
        assert item.photo_frame is not None
        assert read_photo(item.truth).size == read_photo(item.photo).size == Size(192, 256)
        assert read_photo(item.frame).size == read_photo(item.photo_frame).size == Size(96, 128)
        truth, photo, frame = (read_photo(path).pixels for path in (item.truth, item.photo, item.frame))
        half = truth.reshape(96, 2, 128, 2, 3).mean(axis=(1, 3))
        other = photo.reshape(96, 2, 128, 2, 3).mean(axis=(1, 3))
        assert 22 < psnr_db(frame, half, 255) < 40, "degraded, but the same instant"
        assert psnr_db(frame, half, 255) > psnr_db(frame, other, 255) + 1, "another instant than the photo's"
    assert tree_bytes(write_embedded_set(tmp_path / "two", size=Size(192, 256), count=5)) == tree_bytes(folder)
    third = tree_bytes(write_embedded_set(tmp_path / "three", size=Size(192, 256), count=1, seed=1))
    same = {name.split("/")[0] for name, data in third.items() if tree_bytes(folder)[name] == data}
    assert same == {"ref"}, "the seed moves and degrades; the photograph stays"
    with pytest.raises(UsageError, match="100x100"):
        write_embedded_set(tmp_path / "four", size=Size(100, 100))
