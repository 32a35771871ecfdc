"""Which files a folder is taken to hold: suffixes, sidecars, links, and names that look the same."""

from __future__ import annotations

import csv
import io
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from report_samples import sample_report
from synlive_videos import moving_frames, write_video

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.errors import BundleError, ImageError, LiveMomentsError
from livemoments.progress import SILENT
from livemoments.runtime.image_files.colour_codes import display_p3
from livemoments.runtime.image_files.colour_profiles import match_profile
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.upstream_layout import list_photos
from livemoments.types import Size
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.options import DataOptions, ValidateOptions
from livemoments.validate.report.images_csv import images_csv
from livemoments.validate.run import validate_bundle
from livemoments.validate.synlive.clips import read_8_bit
from livemoments.validate.synlive.sources import PairOptions, open_sources

PIXELS = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
PAIRS = PairOptions(2, Size(128, 128), neighbours=False)


def photo_set(folder: Path, name: str = "a.png", *, parts: tuple[str, ...] = ("lr", "ref")) -> Path:
    for part in parts:
        write_image(folder / part / "written.png", PIXELS)
        (folder / part / "written.png").rename(folder / part / name)
    return folder


@pytest.mark.parametrize("name", ["a.PNG", "a.jfif", "a.JPE", "a.mpo", "a.TIFF", "a.heic", "a"])
def test_pictures_of_any_suffix_are_taken(name: str, tmp_path: Path) -> None:
    assert list_photos(photo_set(tmp_path, name))["lr"]["a"].name == name


def test_sidecars_and_clutter_are_no_photos(tmp_path: Path) -> None:
    photo_set(tmp_path)
    for part in ("lr", "ref"):
        for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt"):
            (tmp_path / part / name).write_bytes(b"not a picture")
    (tmp_path / "lr" / "a.png.json").write_text("{}")
    (tmp_path / "ref" / "a.AAE").write_text("<plist/>")
    assert list(list_photos(tmp_path)["lr"]) == ["a"]


def test_a_folder_of_other_things_says_what_it_holds(tmp_path: Path) -> None:
    photo_set(tmp_path)
    (tmp_path / "lr" / "a.png").rename(tmp_path / "lr" / "a.txt")
    (tmp_path / "lr" / "a.txt").write_text("words")
    with pytest.raises(ImageError, match=r"holds no images, only a\.txt"):
        list_photos(tmp_path)


@pytest.mark.parametrize("name", ["a.avif", "a.BMP", "a.dng"])
def test_pictures_that_cannot_be_read_are_named_and_not_passed_over(name: str, tmp_path: Path) -> None:
    photo_set(tmp_path)
    (tmp_path / "lr" / name.replace("a", "b", 1)).write_bytes(b"BM" + bytes(100))
    with pytest.raises(ImageError, match="there is no ref/b"):
        list_photos(tmp_path)


@pytest.mark.parametrize("part", ["lr", "ref"])
def test_a_link_to_nothing_is_named(part: str, tmp_path: Path) -> None:
    photo_set(tmp_path)
    for folder in ("lr", "ref"):
        (tmp_path / folder / "b.png").symlink_to(tmp_path / "gone.png")
    if part == "ref":
        (tmp_path / "lr" / "b.png").unlink()
        shutil.copy(tmp_path / "lr" / "a.png", tmp_path / "lr" / "b.png")
    with pytest.raises(ImageError, match=rf"{part}/b\.png: is a link to nothing"):
        list_photos(tmp_path)


def test_names_are_the_same_however_their_dots_are_stored(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Müller.png") for form in ("NFC", "NFD"))
    photo_set(tmp_path, composed, parts=("lr",))
    photo_set(tmp_path, decomposed, parts=("ref",))
    parts = list_photos(tmp_path)
    assert list(parts["lr"]) == list(parts["ref"]) == ["M\u00fcller"]


def sources(folder: Path, *, photographs: bool) -> list[str]:
    found, _ = open_sources(folder, PAIRS, photographs=photographs, skip_unusable=False, progress=SILENT)
    return [source.name for source in found]


def test_links_in_circles_and_second_names_give_each_photograph_once(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "deep/b.JFIF")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "p.png", np.roll(np.tile(PIXELS, (5, 5, 1)), number, 1))
        (tmp_path / "p.png").rename(folder / name)
    os.link(folder / "a.png", folder / "hard.png")
    (folder / "soft.png").symlink_to(folder / "a.png")
    (folder / "deep" / "up").symlink_to(folder)
    assert sources(folder, photographs=True) == ["a.png", "deep/b.JFIF"]


def test_links_in_circles_and_second_names_give_each_video_once(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_video(folder / "a.mp4", moving_frames(6))
    (folder / "soft.MOV").symlink_to(folder / "a.mp4")
    (folder / "up").symlink_to(folder)
    assert sources(folder, photographs=False) == ["a.mp4"]
    (folder / "gone.mp4").symlink_to(folder / "nothing.mp4")
    with pytest.raises(ImageError, match=r"1 of 2 videos cannot be used: gone\.mp4"):
        sources(folder, photographs=False)


def test_photographs_come_in_srgb_whatever_their_profile(tmp_path: Path) -> None:
    write_image(tmp_path / "p3.png", PIXELS, icc_profile=display_p3())
    expected, done = match_profile(read_photo(tmp_path / "p3.png"), Photo(PIXELS))
    assert done == "converted"
    assert np.array_equal(read_8_bit(tmp_path / "p3.png"), expected.pixels)
    assert not np.array_equal(expected.pixels, PIXELS)


def test_truth_of_another_profile_is_compared_as_the_colours_it_shows(tmp_path: Path) -> None:
    def psnr_db(name: str) -> float:
        report = validate_bundle(
            trained_bundle(),
            data=DataOptions(tmp_path / name, run=RunOptions(pictures=False)),
            options=ValidateOptions(RestoreOptions(steps=1, pad_small=True, threads=1), check_itself=False),
        )
        return next(metric.mean or 0 for metric in report.metrics if metric.name == "psnr_y")

    plain = write_embedded_set(tmp_path / "plain", size=Size(128, 128), count=1)
    shutil.copytree(plain, tmp_path / "p3")
    (truth,) = (tmp_path / "p3" / "gt").iterdir()
    stored, _ = match_profile(read_photo(truth), Photo(PIXELS, icc_profile=display_p3()))
    write_image(truth, stored.pixels, icc_profile=display_p3())
    assert psnr_db("p3") == pytest.approx(psnr_db("plain"), abs=0.1)


def test_a_bundle_of_links_into_a_hubs_cache_says_what_to_do(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(trained_bundle(), tmp_path / "bundle"))
    file = bundle / "motion" / "weights.bin"
    file.rename(tmp_path / "blob")
    file.symlink_to(tmp_path / "blob")
    with pytest.raises(BundleError, match="is a link out of the bundle's folder") as caught:
        Bundle.open(bundle)
    assert "cp -rL" in (caught.value.fix or "")
    shutil.copytree(bundle, tmp_path / "copy")  # which follows links
    Bundle.open(tmp_path / "copy")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_spreadsheet_runs_a_name(name: str) -> None:
    import msgspec

    report = sample_report(1)
    image = msgspec.structs.replace(report.images[0], name=name)
    table = images_csv(msgspec.structs.replace(report, images=(image,)))
    assert next(csv.DictReader(io.StringIO(table)))["name"] == f"'{name}"


def test_a_validation_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    output = tmp_path / "made" / "report"
    options = ValidateOptions(check_itself=False)
    with pytest.raises(LiveMomentsError):
        validate_bundle(trained_bundle(), data=tmp_path / "set", output=output, options=options)
    assert not output.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(LiveMomentsError):
        validate_bundle(trained_bundle(), data=tmp_path / "set", output=tmp_path / "mine", options=options)
    assert (tmp_path / "mine" / "thesis.tex").exists()
