"""Moments are chosen and made ready: the photo's instant, scores, EXIF's time, the page."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_photo_files import (
    IDENTIFIER,
    KEY_FRAME,
    RATE,
    STEP_PX,
    VIDEO_SIZE,
    apple_movie,
    box,
    exif_block,
    movie_bytes,
    part,
    photo_and_frames,
    still_bytes,
    write,
    write_pair,
)
from PIL import ExifTags, Image

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")

from livemoments.distances import psnr_db
from livemoments.errors import FileError, UsageError
from livemoments.runtime.image_files.exif import content_identifier, shift_time
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.moments import moments, parse_time
from livemoments.runtime.live_photo.opened import open_live_photo
from livemoments.runtime.live_photo.page import MAX_FRAMES, render, shown_frames, thumbnail
from livemoments.runtime.live_photo.placement import place
from livemoments.runtime.live_photo.scores import FrameScore, best_frame, score_frames
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
WINDOW = (0.05, 0.05, 0.9, 0.9)


def small(pixels: np.ndarray, size: Size) -> np.ndarray:
    return cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA)


def test_a_moments_images_fit_each_other(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(SEED, window=WINDOW)
    write_pair(tmp_path, photo, frames)
    clip = LiveClip(open_live_photo(tmp_path))
    placement = place(clip)
    assert placement.key_index == KEY_FRAME
    assert any("cropped to" in note for note in placement.notes)
    (moment,) = moments(clip, placement, [7])
    assert (moment.index, moment.time_s) == (7, pytest.approx(7 / RATE))
    inputs = load_inputs(moment.live.frame, moment.live.photo, moment.live.photo_frame)
    assert inputs.size.width == pytest.approx(0.9 * 512, abs=4)
    assert not inputs.photo_frame_derived
    assert moment.live.photo_frame is not None
    key = small(moment.live.photo.pixels, moment.live.photo_frame.size)
    assert psnr_db(moment.live.photo_frame.pixels, key, 255.0) > 28
    # the wanted frame is the key frame's scene, moved: laid back by the motion they agree
    back = np.roll(
        moment.live.frame.pixels, round((7 - KEY_FRAME) * STEP_PX * placement.view.frame.width / 256), axis=1
    )
    inner = np.s_[8:-8, 24:-24]
    assert psnr_db(back[inner], moment.live.photo_frame.pixels[inner], 255.0) > 24


def test_the_moments_exif_states_its_time(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(SEED)
    write_pair(tmp_path, photo, frames)
    clip = LiveClip(open_live_photo(tmp_path))
    (moment,) = moments(clip, place(clip), [KEY_FRAME + 3])
    exif = Image.Exif()
    assert moment.live.photo.exif is not None
    exif.load(moment.live.photo.exif)
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    assert inner[ExifTags.Base.DateTimeOriginal] == "2021:04:10 11:44:00"
    assert int(inner[ExifTags.Base.SubsecTimeOriginal]) == pytest.approx(814 + 1000 * 3 / RATE, abs=2)
    assert inner[ExifTags.Base.OffsetTimeOriginal] == "+01:00"
    assert any("moved by +0.1" in note for note in moment.notes)


@pytest.mark.parametrize(
    ("taken", "sub", "seconds", "expected", "expected_sub"),
    [
        ("2021:12:31 23:59:59", "900", 0.25, "2022:01:01 00:00:00", "150"),
        ("2022:01:01 00:00:00", "100", -0.25, "2021:12:31 23:59:59", "850"),
        ("2024:02:28 23:59:59", "05", 86400.0, "2024:02:29 23:59:59", "05"),
        ("2021:04:10 11:44:00", "0995", 0.00049, "2021:04:10 11:44:00", "1000"),
    ],
)
def test_exif_times_are_shifted(taken: str, sub: str, seconds: float, expected: str, expected_sub: str) -> None:
    block = exif_block(taken=taken, sub=sub, identifier=IDENTIFIER).removeprefix(b"Exif\0\0")
    shifted, is_moved = shift_time(block, seconds)
    assert is_moved
    assert len(shifted) == len(block)
    exif = Image.Exif()
    exif.load(shifted)
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    assert (inner[ExifTags.Base.DateTimeOriginal], inner[ExifTags.Base.SubsecTimeOriginal]) == (expected, expected_sub)
    assert content_identifier(shifted) == IDENTIFIER


@pytest.mark.parametrize("taken", [None, "0000:00:00 00:00:00", "no time at all here", "2021:13:40 11:44:00"])
def test_exif_without_a_time_stays(taken: str | None) -> None:
    block = exif_block(taken=taken).removeprefix(b"Exif\0\0")
    assert shift_time(block, 1.0) == (block, False)


def test_without_a_key_time_the_photo_itself_tells(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(SEED, step_px=6.0)
    write(tmp_path / "a.jpg", still_bytes(photo))
    write(tmp_path / "a.mp4", movie_bytes(frames))
    clip = LiveClip(open_live_photo(tmp_path / "a.jpg"))
    assert clip.key_index is None
    placement = place(clip)
    assert placement.key_index == KEY_FRAME
    assert any("nothing says when" in note for note in placement.notes)


def test_photo_and_video_of_different_scenes(tmp_path: Path) -> None:
    photo, _ = photo_and_frames(SEED)
    _, frames = photo_and_frames(SEED + 1)
    write_pair(tmp_path, photo, frames)
    clip = LiveClip(open_live_photo(tmp_path))
    with pytest.raises(FileError, match="do not show the same") as refused:
        place(clip)
    assert "--force" in str(refused.value.fix)
    assert any("Taken by --force" in note for note in place(clip, force=True).notes)


@pytest.mark.parametrize("padded", [True, False])
def test_outside_the_clean_aperture(tmp_path: Path, padded: bool) -> None:
    """Apple's clips go on beyond it, and so does the photo; padding is no picture and is cut away."""
    photo, frames = photo_and_frames(SEED)
    inside = Size(168, 224)
    if padded:  # the photo shows what the inner part shows
        photo, inner = photo_and_frames(SEED, video_size=inside)
        frames = [np.zeros((192, 256, 3), np.uint8) for _ in inner]
        for frame, picture in zip(frames, inner, strict=True):
            frame[12:-12, 16:-16] = picture
    _, video = write_pair(tmp_path, photo, frames)
    video.write_bytes(with_aperture(video.read_bytes(), inside))
    clip = LiveClip(open_live_photo(tmp_path))
    assert clip.live.movie.clean_aperture == inside
    placement = place(clip)
    assert any("clean aperture" in note for note in placement.notes) == padded
    assert placement.view.keeps > 0.97
    (moment,) = moments(clip, placement, [KEY_FRAME])
    key = small(moment.live.photo.pixels, moment.live.frame.size)
    assert psnr_db(moment.live.frame.pixels, key, 255.0) > 26


def with_aperture(movie: bytes, size: Size) -> bytes:
    """A movie whose first track has QuickTime's aperture; its ``moov`` comes behind the samples."""
    moov = part(movie, b"moov")
    at = movie.index(moov)
    trak = moov.index(b"trak") - 4
    (length,) = struct.unpack_from(">I", moov, trak)
    clef = box(b"clef", struct.pack(">III", 0, size.width << 16, size.height << 16))
    track = box(b"trak", moov[trak + 8 : trak + length], box(b"tapt", clef))
    grown = box(b"moov", moov[8:trak], track, moov[trak + length :])
    return movie[:at] + grown + movie[at + len(moov) :]


# Scores


def test_scores_tell_sharpness_motion_and_distance(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(SEED)
    blurred = 2
    frames[blurred] = cv2.GaussianBlur(frames[blurred], (0, 0), 2.5)
    write_pair(tmp_path, photo, frames)
    clip = LiveClip(open_live_photo(tmp_path))
    seen: list[int] = []
    scores = score_frames(clip, KEY_FRAME, keep=lambda index, _pixels: seen.append(index))
    assert seen == list(range(len(frames)))
    assert max(score.sharpness for score in scores) == 1.0
    assert min(scores, key=lambda score: score.sharpness).index == blurred
    assert [score.index for score in scores if score.is_key] == [KEY_FRAME]
    assert scores[6].motion_px == pytest.approx(STEP_PX, rel=0.25)
    assert scores[8].distance_px == pytest.approx(4 * STEP_PX, rel=0.25)
    assert scores[KEY_FRAME].distance_px == 0
    assert scores[8].from_key_s == pytest.approx(4 / RATE, abs=1e-3)
    assert best_frame(scores).index != blurred
    assert json.loads(json.dumps(scores[0].to_json()))["index"] == 0


def test_of_equally_sharp_frames_the_nearest_to_the_photo_is_best() -> None:
    scores = [FrameScore(n, n / 30, 1.0, 0.0, 0.0, (n - 3) / 30, n == 3) for n in range(8)]
    assert best_frame(tuple(scores)).index == 3


@pytest.mark.parametrize(
    ("text", "seconds"), [("1.2s", 1.2), ("1.2", 1.2), ("1200ms", 1.2), (" .5 S", 0.5), ("0", 0.0)]
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1,2s", "-1s", "1e3", "nan", "1m", "١s"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        parse_time(text)


def test_frames_outside_the_clip_are_named(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(72, 96))
    write(tmp_path / "a.jpg", still_bytes(photo))
    write(tmp_path / "a.mp4", movie_bytes(frames))
    clip = LiveClip(open_live_photo(tmp_path / "a.jpg"))
    with pytest.raises(UsageError, match="outside the clip"):
        clip.at(3.0)
    with pytest.raises(UsageError, match="no frame 9"):
        clip.check(9)
    assert clip.check(8) == 8
    assert clip.at(0.3) == 8


def test_a_key_time_outside_the_clip_is_said(tmp_path: Path) -> None:
    """A Galaxy S22 states 2.99 s in a clip that ends at 2.89 s: near enough. Seconds away it is said."""
    photo, frames = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(72, 96))
    write(tmp_path / "a.jpg", still_bytes(photo, exif=exif_block(identifier=IDENTIFIER)))
    write(tmp_path / "a.mov", apple_movie(frames, key_frame=90))
    clip = LiveClip(open_live_photo(tmp_path / "a.jpg"))
    assert clip.key_index == len(frames) - 1
    assert any("outside the clip" in note for note in clip.notes)


# The page


def page(title: str = "IMG_1.HEIC", count: int = 3) -> str:
    scores = [FrameScore(n, n / 30, 1.0 - n / 10, 0.5, 1.5, (n - 1) / 30, n == 1) for n in range(count)]
    picture = thumbnail(np.zeros((30, 40, 3), np.uint8), None)
    return render(
        title=title,
        facts=["a fact & another"],
        photo=picture,
        scores=scores,
        thumbnails=dict.fromkeys(shown_frames(count), picture),
        best=0,
        commands={n: f"livemoments restore --live '{title}' --at {n}" for n in range(count)},
    )


def test_the_page_is_offline_and_escapes_names() -> None:
    hostile = "</script><img src=x onerror=alert(1)>.heic"
    text = page(hostile)
    assert "default-src 'none'" in text
    addresses = re.findall(r'(?:src|href)="?([^"\s>]+)', text)
    assert all(address.startswith("data:") for address in addresses if address != "x")
    assert "<img src=x" not in text
    assert text.count("</script>") == 1
    assert "a fact &amp; another" in text
    assert len(re.findall(r"data-frame=\"\d+\"", text)) >= 3


def test_long_clips_are_thinned_out_on_the_page() -> None:
    assert len(shown_frames(MAX_FRAMES)) == MAX_FRAMES
    assert MAX_FRAMES // 2 < len(shown_frames(3600)) <= MAX_FRAMES
    assert list(shown_frames(1)) == [0]


def test_thumbnails_are_srgb_and_small() -> None:
    assert VIDEO_SIZE.width < 320
    picture = thumbnail(np.full((800, 600, 3), 128, np.uint8), None)
    assert picture.startswith("data:image/jpeg;base64,")
    assert len(picture) < 8000
