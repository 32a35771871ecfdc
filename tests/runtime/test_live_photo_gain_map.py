"""HDR gain maps: read, carried to another moment, written, and read by others."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_photo_files import (
    KEY_FRAME,
    exif_block,
    item,
    motion_xmp,
    movie_bytes,
    photo_and_frames,
    still_bytes,
    write,
    write_pair,
)
from PIL import Image

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.gain_map import GainMap, encode_gain_map, read_gain_map
from livemoments.runtime.image_files.jpeg_segments import append_picture
from livemoments.runtime.image_files.photo import Photo, read_photo, write_image
from livemoments.runtime.live_photo.claims import read_claims
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.gain_of_moment import carry_gain_map
from livemoments.runtime.live_photo.moments import moments
from livemoments.runtime.live_photo.opened import open_live_photo
from livemoments.runtime.live_photo.placement import place
from livemoments.runtime.live_photo.registration import View
from livemoments.runtime.live_photo.writing import prepare_output
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
PHOTO_SIZE, VIDEO_SIZE = Size(288, 384), Size(144, 192)
STEP_PX = 3.0
NEW = 7
PHOTO, FRAMES = photo_and_frames(SEED, photo_size=PHOTO_SIZE, video_size=VIDEO_SIZE, step_px=STEP_PX)


def gain_of(picture: np.ndarray) -> np.ndarray:
    """A map as phones make it: bright places shine, at a quarter of the size."""
    small = cv2.resize(picture, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return np.rint(255 * luma**3).astype(np.uint8)


def some_map(pixels: np.ndarray) -> GainMap:
    draw = np.random.default_rng(SEED)

    def three(low: float, high: float) -> tuple[float, float, float]:
        red, green, blue = draw.uniform(low, high, 3)
        return float(red), float(green), float(blue)

    return GainMap(
        pixels, three(-1, 0), three(1, 3), three(0.5, 2), three(0, 0.1), three(0, 0.1), 0.25, float(draw.uniform(1, 4))
    )


def ultra_hdr(pixels: np.ndarray, gain: bytes, video: bytes = b"", *, index: bool = False) -> bytes:
    """A JPEG with a gain map, and a video: by the container's directory only, or with a multi-picture index too."""
    items = [item("Primary", "image/jpeg", 0), item("GainMap", "image/jpeg", len(gain))]
    items += [item("MotionPhoto", "video/mp4", len(video))] if video else []
    shown = 'hdrgm:Version="1.0"' + (' GCamera:MotionPhoto="1"' if video else "")
    time_us = round(KEY_FRAME * 1e6 / 30) if video else None
    still = still_bytes(pixels, exif=exif_block(), xmp=motion_xmp(*items, time_us=time_us, attributes=shown))
    return (append_picture(still, gain) if index else still + gain) + video


@pytest.mark.parametrize("shape", [(36, 48), (36, 48, 3)])
@pytest.mark.parametrize("kind", ["xmp", "iso"])
def test_a_map_is_read_as_it_was_written(shape: tuple[int, ...], kind: str) -> None:
    pixels = cv2.GaussianBlur(np.random.default_rng(SEED).integers(0, 256, shape, np.uint8), (0, 0), 3)
    gain = some_map(pixels)
    picture = encode_gain_map(gain)
    hidden = {"iso": b"http://ns.adobe.com/xap", "xmp": b"urn:iso:std:iso:ts:21496"}[kind]
    assert hidden in picture
    picture = picture.replace(hidden, b"x" * len(hidden))  # each kind of metadata by itself
    found = read_gain_map(append_picture(still_bytes(PHOTO), picture))
    assert found is not None
    assert np.abs(found.pixels.astype(int) - pixels).mean() < 3  # a JPEG
    for field in fields(GainMap)[1:]:
        assert getattr(found, field.name) == pytest.approx(getattr(gain, field.name), abs=1e-6), field.name


def test_the_photos_orientation_turns_the_map_too() -> None:
    pixels = gain_of(PHOTO)
    for orientation, turned in ((6, np.rot90(pixels, -1)), (8, np.rot90(pixels)), (2, pixels[:, ::-1])):
        still = still_bytes(PHOTO, exif=exif_block(orientation=orientation))
        found = read_gain_map(append_picture(still, encode_gain_map(some_map(pixels))))
        assert found is not None
        assert np.abs(found.pixels.astype(int) - turned).mean() < 3


@pytest.mark.parametrize(
    "block", ["common denominator", "one channel", "backward", "version 1", "cut", "denominator 0"]
)
def test_isos_block(block: str) -> None:
    """Written by hand, after the standard: the photo's headroom, the HDR one's, then min, max, gamma, offsets."""
    flags = {"common denominator": 1 << 3, "backward": 1 << 2}.get(block, 0)
    below = 0 if block == "denominator 0" else 100
    numbers = [0, 300, -50, 250, 100, 2, 3]
    head = struct.pack(">HHB", block == "version 1", 0, flags)
    if block == "common denominator":
        body = struct.pack(">I2I2iI2i", below, *numbers)
    else:
        body = b"".join(struct.pack(">iI", number, below) for number in numbers)
    body = head + (body[:-5] if block == "cut" else body)
    segment = b"urn:iso:std:iso:ts:21496:-1\0" + body
    plain = still_bytes(gain_of(PHOTO)[..., None].repeat(3, 2))
    picture = plain[:2] + struct.pack(">HH", 0xFFE2, len(segment) + 2) + segment + plain[2:]
    found = read_gain_map(append_picture(still_bytes(PHOTO), picture))
    if block not in ("common denominator", "one channel"):
        assert found is None
        return
    assert found is not None
    assert (found.low, found.high, found.gamma) == ((-0.5,) * 3, (2.5,) * 3, (1.0,) * 3)
    assert (found.offset, found.offset_hdr, found.headroom, found.headroom_hdr) == ((0.02,) * 3, (0.03,) * 3, 0, 3)


def test_a_map_follows_the_scene() -> None:
    """Against the map that the moment's own photo would have had, and against leaving the map where it is."""
    size = PHOTO_SIZE
    _, shown = photo_and_frames(SEED, photo_size=size, video_size=size, step_px=STEP_PX * size.width / VIDEO_SIZE.width)
    truth, unmoved = gain_of(shown[NEW]).astype(float), gain_of(shown[KEY_FRAME]).astype(float)
    view = View(0, 0, size, VIDEO_SIZE, np.eye(2, 3), False, 1.0)
    live = LivePhoto(Photo(FRAMES[NEW]), Photo(PHOTO), Photo(FRAMES[KEY_FRAME]))
    carried = carry_gain_map(some_map(gain_of(PHOTO)), size, view, live)
    assert carried.followed > 0.8
    off, off_unmoved = np.abs(carried.gain.pixels - truth).mean(), np.abs(unmoved - truth).mean()
    assert off < 0.4 * off_unmoved
    # where nothing can be followed, the colours decide
    turned = replace(live, frame=Photo(np.ascontiguousarray(FRAMES[KEY_FRAME][::-1])))
    guessed = carry_gain_map(some_map(gain_of(PHOTO)), size, view, turned)
    assert guessed.followed < 0.4
    upside_down = gain_of(PHOTO)[::-1].astype(float)
    assert np.abs(guessed.gain.pixels - upside_down).mean() < 0.5 * np.abs(upside_down.mean() - upside_down).mean()


def test_a_map_is_cut_to_the_view() -> None:
    rows, columns = np.mgrid[0:72, 0:96]
    ramp = (rows + columns).astype(np.uint8)
    view = View(96, 48, Size(144, 192), Size(72, 96), np.eye(2, 3), False, 0.25)
    frame = Photo(cv2.resize(PHOTO[48:192, 96:288], (96, 72), interpolation=cv2.INTER_AREA))
    carried = carry_gain_map(some_map(ramp), PHOTO_SIZE, view, LivePhoto(frame, frame, frame))
    assert carried.gain.pixels.shape == (36, 48)
    assert np.abs(carried.gain.pixels.astype(int) - ramp[12:48, 24:72]).max() <= 1


def written(source: Path, output: Path, *, write_live: bool) -> tuple[str, ...]:
    live = open_live_photo(source)
    clip = LiveClip(live)
    placement = place(clip)
    (moment,) = moments(clip, placement, [NEW])
    made = prepare_output(moment, live, placement.view, output, write_live=write_live)
    pixels = np.repeat(np.repeat(moment.live.frame.pixels, 2, axis=0), 2, axis=1)
    write_image(
        output,
        pixels,
        like=made.live.photo,
        trailer=made.trailer,
        gain_map=made.gain_map,
        keeps_video_claims=write_live,
    )
    made.write_video(output)
    return made.notes


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("write_live", [False, True])
def test_a_motion_photo_stays_hdr(tmp_path: Path, index: bool, write_live: bool) -> None:
    """MotionPhoto2 15: the gain map is named in the directory, and lies where it says, before the video."""
    movie = movie_bytes(FRAMES)
    gain = some_map(gain_of(PHOTO))
    data = ultra_hdr(PHOTO, encode_gain_map(gain), movie, index=index)
    source = write(tmp_path / "in.jpg", data)
    notes = written(source, tmp_path / "a.jpg", write_live=write_live)
    assert "carried to the moment" in notes[0]
    result = (tmp_path / "a.jpg").read_bytes()
    live = open_live_photo(tmp_path / "a.jpg", video=None if write_live else write(tmp_path / "v.mp4", movie))
    found = live.gain_map
    assert found is not None
    assert found.high == pytest.approx(gain.high, abs=1e-6)
    assert [entry.semantic for entry in live.claims.items] == ["Primary", "GainMap", "MotionPhoto"][: 2 + write_live]
    place_by_xmp = live.claims.gain_map_place(len(result))
    assert place_by_xmp is not None
    start, end = place_by_xmp
    with Image.open(io.BytesIO(result[start:end])) as picture:
        assert picture.size == found.pixels.shape[1::-1]
    with Image.open(io.BytesIO(result)) as photo:  # the index leads to the same picture, as Pillow reads it
        (_, second) = photo._getmp()[0xB002]
        header_at = photo.info["mpoffset"]
        assert (header_at + second["DataOffset"], second["Size"]) == (start, end - start)
    if write_live:
        assert live.video.read(0, live.video.size) == movie
    if shutil.which("exiftool"):
        command = ["exiftool", "-j", "-MPImage2", "-b", str(tmp_path / "a.jpg")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout)[0]["MPImage2"].startswith("base64:")


def test_what_cannot_hold_a_map_says_so(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path / "in", PHOTO, FRAMES)
    write(source, append_picture(source.read_bytes(), encode_gain_map(some_map(gain_of(PHOTO)))))
    assert "carried to the moment" in written(source, tmp_path / "a.jpg", write_live=True)[0]
    assert open_live_photo(tmp_path / "a.jpg").gain_map is not None
    assert "only a JPEG" in written(source, tmp_path / "a.png", write_live=False)[0]
    with pytest.raises(UsageError, match="JPEG only"):
        write_image(tmp_path / "b.png", PHOTO, gain_map=b"\xff\xd8")
    # restored without its Live Photo, the picture has no map, and does not claim one
    write_image(tmp_path / "c.jpg", PHOTO, like=read_photo(tmp_path / "a.jpg"))
    assert not read_claims(read_photo(tmp_path / "c.jpg").xmp).has_gain_map


def test_damaged_maps_are_no_maps() -> None:
    draw = np.random.default_rng(SEED)
    good = ultra_hdr(PHOTO, encode_gain_map(some_map(gain_of(PHOTO))), index=True)
    assert read_gain_map(good) is not None
    for _ in range(60):
        bad = bytearray(good[: int(draw.integers(1, len(good)))] if draw.random() < 0.3 else good)
        for at in draw.integers(0, len(bad), int(draw.integers(1, 30))):
            bad[at] = int(draw.integers(0, 256))
        found = read_gain_map(bytes(bad))
        assert found is None or found.pixels.dtype == np.uint8
    assert read_gain_map(b"") is None
    assert read_gain_map(still_bytes(PHOTO)) is None
