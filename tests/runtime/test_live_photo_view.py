"""Photo and video are laid over each other: crop, scale, turn, mirror image; frames in the photo's view and colours."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_photo_files import (
    KEY_FRAME,
    PHOTO_SIZE,
    VIDEO_SIZE,
    movie_bytes,
    photo_and_frames,
    scene,
    still_bytes,
    write,
    write_pair,
)

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")

from livemoments.distances import psnr_db
from livemoments.runtime.image_files.colour_codes import display_p3
from livemoments.runtime.image_files.photo import ASPECT_TOLERANCE
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.opened import open_live_photo
from livemoments.runtime.live_photo.registration import MIN_LIKENESS, common_view, register
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
CLOSE_DB = 30.0
"""Registered video frames against the photo made small: both are resampled, one is compressed. A shift of one video
pixel is 22 dB."""


def small(pixels: np.ndarray, size: Size) -> np.ndarray:
    return cv2.resize(pixels, (size.width, size.height), interpolation=cv2.INTER_AREA)


WINDOWS = {
    "the same view": ((0.0, 0.0, 1.0, 1.0), VIDEO_SIZE),
    "a crop at the side": ((0.1, 0.05, 0.8, 0.8), VIDEO_SIZE),
    "16:9 of 4:3": ((0.0, 0.125, 1.0, 0.75), Size(180, 320)),
    "portrait of landscape": ((0.3, 0.0, 0.421875, 1.0), Size(256, 144)),
    "wider than the photo": ((-0.1, -0.1, 1.2, 1.2), VIDEO_SIZE),
    "larger than the photo": ((0.0, 0.0, 1.0, 1.0), Size(576, 768)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_the_view_that_both_share(name: str) -> None:
    """immich 16120 among them: another aspect ratio. Laid over each other corner by corner they do not match."""
    window, size = WINDOWS[name]
    photo, frames = photo_and_frames(SEED, window=window, video_size=size)
    found = register(photo, frames[KEY_FRAME])
    assert found.is_estimated
    assert found.likeness > 0.9
    assert not found.mirrored
    assert found.scale == pytest.approx(window[2] * PHOTO_SIZE.width / size.width, rel=0.005)
    view = common_view(found, size, PHOTO_SIZE)
    assert view is not None
    aspect = view.frame.width / view.frame.height / (view.crop.width / view.crop.height)
    assert aspect == pytest.approx(1, abs=ASPECT_TOLERANCE)
    left, top = max(0.0, window[0]) * PHOTO_SIZE.width, max(0.0, window[1]) * PHOTO_SIZE.height
    assert view.x == pytest.approx(left, abs=3)
    assert view.y == pytest.approx(top, abs=3)
    crop, frame = view.photo_pixels(photo), view.frame_pixels(frames[KEY_FRAME])
    assert frame.shape[:2] == (view.frame.height, view.frame.width)
    assert psnr_db(frame, small(crop, view.frame), 255.0) > CLOSE_DB
    if view.keeps < 0.95 or name.startswith("wider"):
        naive = small(photo, Size(*frames[KEY_FRAME].shape[:2]))
        assert psnr_db(frames[KEY_FRAME], naive, 255.0) < CLOSE_DB - 5


def test_a_mirrored_selfie() -> None:
    """AppleLivePhotoConvert 10: the photo is stored as seen in a mirror, the video is not."""
    photo, frames = photo_and_frames(SEED + 1)
    mirrored = np.ascontiguousarray(photo[:, ::-1])
    found = register(mirrored, frames[KEY_FRAME])
    assert found.mirrored
    view = common_view(found, VIDEO_SIZE, PHOTO_SIZE)
    assert view is not None
    crop = small(view.photo_pixels(mirrored), view.frame)
    assert psnr_db(view.frame_pixels(frames[KEY_FRAME]), crop, 255.0) > CLOSE_DB
    assert psnr_db(frames[KEY_FRAME], small(mirrored, VIDEO_SIZE), 255.0) < CLOSE_DB - 5


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_an_edit_that_turned_the_photo(turns: int) -> None:
    """kei 713: the edited photo beside the video of the original."""
    photo, frames = photo_and_frames(SEED + 2)
    turned = np.ascontiguousarray(np.rot90(photo, turns))
    found = register(turned, frames[KEY_FRAME])
    size = Size(*turned.shape[:2])
    view = common_view(found, VIDEO_SIZE, size)
    assert view is not None
    assert view.keeps > 0.97
    assert psnr_db(view.frame_pixels(frames[KEY_FRAME]), small(view.photo_pixels(turned), view.frame), 255.0) > CLOSE_DB


def test_another_scene_is_not_alike() -> None:
    """immich 5473: resources that do not belong together."""
    photo, _ = photo_and_frames(SEED + 3)
    _, frames = photo_and_frames(SEED + 4)
    found = register(photo, frames[KEY_FRAME])
    assert not found.is_estimated
    assert found.likeness < MIN_LIKENESS


def test_a_slant_has_no_view() -> None:
    picture = scene(SEED + 5)
    photo = picture[96:480, 128:640]
    middle = (picture.shape[1] / 2, picture.shape[0] / 2)
    slanted = cv2.warpAffine(picture, cv2.getRotationMatrix2D(middle, 30, 1.0), picture.shape[1::-1])[96:480, 128:640]
    found = register(photo, small(slanted, VIDEO_SIZE))
    assert abs(found.turn_deg) == pytest.approx(30, abs=1)
    assert common_view(found, VIDEO_SIZE, PHOTO_SIZE) is None


def test_pictures_without_details_are_placed_by_their_sizes() -> None:
    flat = np.full((384, 512, 3), 120, np.uint8)
    found = register(flat, np.full((144, 256, 3), 118, np.uint8))
    assert not found.is_estimated
    assert found.likeness == 1.0
    view = common_view(found, Size(144, 256), Size(384, 512))
    assert view is not None
    assert (view.crop, view.x, view.y) == (Size(288, 512), 0, 48)


def test_frames_of_the_same_view_are_not_resampled() -> None:
    photo, frames = photo_and_frames(SEED + 6)
    view = common_view(register(photo, frames[KEY_FRAME]), VIDEO_SIZE, PHOTO_SIZE)
    assert view is not None
    assert view.frame_pixels(frames[0]) is frames[0]


# The video's own ways


def test_variable_frame_rates_keep_their_times(tmp_path: Path) -> None:
    """Samsung's clip of a Galaxy S22 has a gap of 0.7 s; a reader that counts frames is off by as much."""
    photo, frames = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(72, 96))
    times = [0, 1, 2, 3, 24, 25, 27, 28, 30]
    write(tmp_path / "a.jpg", still_bytes(photo))
    write(tmp_path / "a.mp4", movie_bytes(frames, times=times))
    clip = LiveClip(open_live_photo(tmp_path / "a.jpg"))
    assert np.allclose(clip.times_s, np.array(times) / 30, atol=1e-3)
    assert clip.at(0.81) == 4
    assert clip.at(24 / 30) != round(24 / 30 * 30)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 5])
def test_matrix_and_range_are_the_videos_own(tmp_path: Path, matrix: int, full_range: bool) -> None:
    """Phones write full-range BT.601. Taken for limited BT.709, contrast and hue change."""
    rng = np.random.default_rng(SEED)
    colours = rng.integers(40, 216, (6, 8, 3), np.uint8)
    picture = np.repeat(np.repeat(colours, 24, axis=0), 24, axis=1)
    write(tmp_path / "a.jpg", still_bytes(picture))
    write(tmp_path / "a.mp4", movie_bytes([picture] * 3, matrix=matrix, full_range=full_range))
    frame = LiveClip(open_live_photo(tmp_path / "a.jpg")).photo(1)
    assert frame.icc_profile is None
    inner = frame.pixels[12::24, 12::24].astype(int)
    assert np.abs(inner - colours.astype(int)).max() <= 6


def hlg_planes(count: int, height: int, width: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Grey HLG in ten bits, limited range, as yuv420p10le wants it, and the grey levels."""
    levels = np.linspace(64, 700, width)
    luma = np.repeat(levels[None], height, axis=0).astype(np.uint16)
    chroma = np.full((height // 2, width), 512, np.uint16)
    return [np.concatenate([luma, chroma])] * count, levels


def test_hlg_video_is_tone_mapped_and_said(tmp_path: Path) -> None:
    planes, _ = hlg_planes(3, 96, 128)
    write(tmp_path / "a.jpg", still_bytes(np.full((96, 128, 3), 90, np.uint8)))
    movie = hlg_movie(planes, Size(96, 128))
    write(tmp_path / "a.mov", movie)
    clip = LiveClip(open_live_photo(tmp_path / "a.jpg"))
    frame = clip.photo(1)
    assert frame.icc_profile == display_p3()
    assert any("HLG" in note and "tone-mapped" in note for note in clip.notes)
    assert (np.ptp(frame.pixels.astype(int), axis=2) <= 4).all()
    assert frame.pixels[48, 120, 0] > frame.pixels[48, 64, 0] > frame.pixels[48, 8, 0]


def hlg_movie(planes: list[np.ndarray], size: Size) -> bytes:
    import io
    from fractions import Fraction

    import av

    stream_bytes = io.BytesIO()
    with av.open(stream_bytes, "w", format="mov") as output:
        options = {"x265-params": "log-level=none:pools=1:frame-threads=1", "crf": "4", "preset": "veryfast"}
        stream = output.add_stream("libx265", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = size.width, size.height, "yuv420p10le"
        context = stream.codec_context
        context.time_base = Fraction(1, 30)
        context.colorspace, context.color_trc, context.color_primaries, context.color_range = 9, 18, 9, 1
        for number, samples in enumerate(planes):
            frame = av.VideoFrame.from_ndarray(samples, format="yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            frame.colorspace, frame.color_range = 9, 1
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return stream_bytes.getvalue()


@pytest.mark.parametrize("kind", ["turned", "mirrored"])
def test_the_movies_matrix_turns_and_mirrors(tmp_path: Path, kind: str) -> None:
    """A negative determinant is a mirror image: front cameras write it. Read as an angle it is lost."""
    photo, frames = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(96, 128))
    _, video = write_pair(tmp_path, photo, frames)
    data = video.read_bytes()
    one, two = 0x10000, 0x40000000
    unit = matrix_bytes(one, 0, 0, one, 0, 0, two)
    turned, mirrored = (0, one, -one, 0, 96 << 16, 0, two), (-one, 0, 0, one, 128 << 16, 0, two)
    new = matrix_bytes(*(turned if kind == "turned" else mirrored))
    at = data.index(unit, data.index(b"tkhd"))
    video.write_bytes(data[:at] + new + data[at + len(unit) :])
    frame = LiveClip(open_live_photo(tmp_path)).photo(KEY_FRAME).pixels
    expected = np.rot90(frames[KEY_FRAME], -1) if kind == "turned" else frames[KEY_FRAME][:, ::-1]
    assert frame.shape == expected.shape
    assert psnr_db(frame, np.ascontiguousarray(expected), 255.0) > CLOSE_DB


def matrix_bytes(a: int, b: int, c: int, d: int, x: int, y: int, w: int) -> bytes:
    import struct

    return struct.pack(">9i", a, b, 0, c, d, 0, x, y, w)
