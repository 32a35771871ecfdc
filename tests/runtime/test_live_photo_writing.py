"""Live Photos are written back: identifiers, times and offsets, as ours and independent readers find them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import run
from live_photo_files import (
    IDENTIFIER,
    RATE,
    apple_movie,
    box,
    exif_block,
    google_photo,
    item,
    motion_xmp,
    movie_bytes,
    part,
    photo_and_frames,
    still_bytes,
    top_boxes,
    write,
    write_pair,
)

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.errors import FileError, OutputError, UsageError
from livemoments.runtime.image_files import tiff_tags
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.runtime.live_photo.claims import read_claims
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.moments import moments
from livemoments.runtime.live_photo.movie import MovieError
from livemoments.runtime.live_photo.movie_edit import edit_movie
from livemoments.runtime.live_photo.opened import APPLE, MOTION, open_live_photo
from livemoments.runtime.live_photo.placement import place
from livemoments.runtime.live_photo.writing import check_live_output, prepare_output
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(2), "big")
PHOTO, FRAMES = photo_and_frames(SEED, photo_size=Size(144, 192), video_size=Size(96, 128))
NEW = 7
"""The moment that becomes the still."""


def write_moment(source: Path, output: Path, *, write_live: bool = True) -> Path:
    """What ``restore --live --write-live`` does, with the frame itself in place of a network's result."""
    live = open_live_photo(source)
    if write_live:
        check_live_output(output, live)
    clip = LiveClip(live)
    placement = place(clip)
    (moment,) = moments(clip, placement, [NEW])
    made = prepare_output(moment, live, placement.view, output, write_live=write_live)
    pixels = np.repeat(np.repeat(moment.live.frame.pixels, 2, axis=0), 2, axis=1)
    text = {"livemoments": "{}"}
    parts: Any = {"trailer": made.trailer, "gain_map": made.gain_map, "keeps_video_claims": write_live}
    write_image(output, pixels, like=made.live.photo, text=text, **parts)
    made.write_video(output)
    return output


def exiftool(path: Path) -> dict[str, Any]:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed")
    done = subprocess.run(
        ["exiftool", "-j", "-ee", "-a", "-u", "-n", "-G1", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (found,) = json.loads(done.stdout)
    return {name.split(":")[-1]: value for name, value in found.items()}


@pytest.mark.parametrize("kind", ["JPEG", "HEIF"])
def test_an_apple_pair_is_written_back(tmp_path: Path, kind: str) -> None:
    source, video = write_pair(tmp_path / "in", PHOTO, FRAMES, kind=kind)
    before = source.read_bytes(), video.read_bytes()
    output = write_moment(source, tmp_path / "out" / f"a{'.jpg' if kind == 'JPEG' else '.heic'}")
    live = open_live_photo(output)
    assert live.kind == APPLE
    assert live.video.path == output.with_suffix(".MOV")
    assert live.identifier == live.movie.identifier
    assert live.identifier not in (None, IDENTIFIER)
    assert live.key_time_s == pytest.approx(NEW / RATE, abs=2e-3)
    assert LiveClip(live).key_index == NEW
    assert live.photo.exif is not None
    assert "livemoments" in tiff_tags.user_comment(live.photo.exif)
    written = live.video.path.read_bytes()
    assert len(written) == len(before[1])
    changed = np.flatnonzero(np.frombuffer(written, np.uint8) != np.frombuffer(before[1], np.uint8))
    assert len(changed) <= 36 + 8 + 8  # the identifier, the edit, the track's duration
    assert (source.read_bytes(), video.read_bytes()) == before


def test_an_apple_pair_as_exiftool_and_ffprobe_read_it(tmp_path: Path) -> None:
    source, video = write_pair(tmp_path / "in", PHOTO, FRAMES, kind="HEIF")
    output = write_moment(source, tmp_path / "a.heic")
    still, movie = exiftool(output), exiftool(output.with_suffix(".MOV"))
    identifier = still.get("ContentIdentifier") or still.get("MediaGroupUUID")  # ExifTool renamed it
    assert identifier == movie["ContentIdentifier"] != IDENTIFIER
    assert movie["StillImageTime"] == -1
    assert still["GPSLatitude"] == exiftool(source)["GPSLatitude"]
    assert movie["Duration"] == exiftool(video)["Duration"]
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", "v", "-of", "json", "-show_streams"]
    done = subprocess.run(
        [*command, str(output.with_suffix(".MOV"))], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(json.loads(done.stdout)["streams"][0]["nb_read_frames"]) == len(FRAMES)


@pytest.mark.parametrize("kind", ["JPEG", "HEIC"])
@pytest.mark.parametrize("out", [".jpg", ".heic"])
def test_a_motion_photo_is_written_back(tmp_path: Path, kind: str, out: str) -> None:
    movie = movie_bytes(FRAMES)
    source = write(tmp_path / f"in.{kind.lower()}", google_photo(PHOTO, movie, kind=kind, exif=exif_block()))
    before = source.read_bytes()
    output = write_moment(source, tmp_path / f"a{out}")
    live = open_live_photo(output)
    assert (live.kind, live.found_by) == (MOTION, "XMP container")
    assert not [note for note in live.notes if "no movie begins" in note]
    assert live.video.read(0, live.video.size) == movie
    assert live.key_time_s == pytest.approx(NEW / RATE, abs=1e-5)
    # lengths and padding by the format: counted from the file's end, and from the picture's
    offsets = [offset for _, offset in live.claims.offsets_from_end()]
    assert offsets[0] == len(movie)
    primary = live.claims.items[0]
    assert (primary.semantic, primary.padding) == ("Primary", 8 if out == ".heic" else 0)
    assert primary.mime == ("image/heic" if out == ".heic" else "image/jpeg")
    assert source.read_bytes() == before
    if shutil.which("exiftool"):
        command = ["exiftool", "-b", "-Trailer" if out == ".jpg" else "-MotionPhotoVideo", str(output)]
        assert subprocess.run(command, capture_output=True, timeout=60, check=True).stdout == movie
    if out == ".heic" and shutil.which("heif-info"):
        shown = subprocess.run(
            ["heif-info", str(output)], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        assert "image/heic" in shown


def test_oppos_marks_are_kept(tmp_path: Path) -> None:
    """live-photo-conv 35: without its UserComment OPPO's gallery shows a still."""
    movie = movie_bytes(FRAMES)
    space = 'xmlns:OpCamera="http://ns.oplus.com/photos/1.0/camera/"'
    attributes = (
        f'{space} GCamera:MotionPhoto="1" OpCamera:MotionPhotoOwner="oplus" OpCamera:VideoLength="{len(movie)}"'
    )
    xmp = motion_xmp(
        item("Primary", "image/jpeg", 0), item("MotionPhoto", "video/mp4", len(movie)), attributes=attributes
    )
    exif = exif_block(comment=b"ASCII\0\0\0oplus_8388608")
    source = write(tmp_path / "in.jpg", still_bytes(PHOTO, exif=exif, xmp=xmp) + movie)
    output = write_moment(source, tmp_path / "a.jpg")
    live = open_live_photo(output)
    assert live.claims.is_oppo
    assert live.claims.video_length == len(movie)
    assert live.photo.exif is not None
    assert tiff_tags.user_comment(live.photo.exif) == "oplus_8388608"
    # without --write-live the mark goes: there is no video
    plain = tmp_path / "plain.jpg"
    write_image(plain, PHOTO, like=open_live_photo(source).photo)
    kept = read_photo(plain)
    assert kept.exif is not None
    assert tiff_tags.user_comment(kept.exif) == ""
    assert not read_claims(kept.xmp).is_motion


def test_other_metadata_of_the_packet_stay(tmp_path: Path) -> None:
    movie = movie_bytes(FRAMES)
    attributes = 'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="kamera" GCamera:MotionPhoto="1"'
    xmp = motion_xmp(item("MotionPhoto", "video/mp4", 5), attributes=attributes)
    source = write(tmp_path / "in.jpg", still_bytes(PHOTO, xmp=xmp) + movie)
    packet = open_live_photo(write_moment(source, tmp_path / "a.jpg")).photo.xmp
    assert packet is not None
    assert b"kamera" in packet
    assert [entry.length for entry in read_claims(packet).items] == [0, len(movie)]


def moov_first(movie: bytes) -> bytes:
    """The movie with its header before its samples, as phones' own exports have it."""
    header = part(movie, b"moov")
    others = [movie[start:end] for kind, start, end in top_boxes(movie) if kind not in (b"ftyp", b"moov")]
    moved = bytearray(header)
    at = moved.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", moved, at)
    for index in range(count):
        (place,) = struct.unpack_from(">I", moved, at + 4 + 4 * index)
        struct.pack_into(">I", moved, at + 4 + 4 * index, place + len(header))
    return part(movie, b"ftyp") + bytes(moved) + b"".join(others)


@pytest.mark.parametrize("arrangement", ["moov last", "moov first", "last box without a length", "still at 0"])
def test_a_movie_that_does_not_say_when_its_still_was_gets_the_track(tmp_path: Path, arrangement: str) -> None:
    source, video = write_pair(tmp_path / "in", PHOTO, FRAMES, key_frame=None)
    before = apple_movie(FRAMES, IDENTIFIER, None)
    if arrangement == "moov first":
        before = moov_first(before)
    elif arrangement == "last box without a length":
        before = moov_first(before)
        _, start, _ = top_boxes(before)[-1]
        before = before[:start] + bytes(4) + before[start + 4 :]
    elif arrangement == "still at 0":  # its track has no empty edit that could be made longer
        at_once = struct.pack(">IiI", 1, 0, 0x10000)
        before = apple_movie(FRAMES, IDENTIFIER, 0).replace(struct.pack(">IiI", 0, -1, 0x10000), at_once)
    write(video, before)
    output = write_moment(source, tmp_path / "out" / "a.jpg")
    live = open_live_photo(output)
    assert live.kind == APPLE
    assert live.key_time_from == "the still-image-time track"
    clip = LiveClip(live)
    assert clip.key_index == NEW
    original = LiveClip(open_live_photo(source))
    for ours, theirs in zip(clip.frames(), original.frames(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    written = live.video.path.read_bytes()
    assert part(written, b"mdat")[8:] == part(before, b"mdat")[8:]
    found = exiftool(live.video.path)
    assert found["StillImageTime"] == -1
    assert found["ContentIdentifier"] == live.identifier


@pytest.mark.parametrize("damage", ["no identifier", "fragmented", "no pictures", "no header", "empty"])
def test_movies_that_cannot_be_edited(damage: str) -> None:
    movie = apple_movie(FRAMES, None if damage == "no identifier" else IDENTIFIER, None)
    header = part(movie, b"moov")
    movie = {
        "fragmented": movie.replace(header, box(b"moov", header[8:], box(b"mvex"))),
        "no pictures": movie.replace(b"vide", b"text"),
        "no header": movie.replace(b"mvhd", b"free"),
        "empty": b"",
    }.get(damage, movie)
    with pytest.raises(MovieError, match=r"identifier|fragmented|picture|header"):
        edit_movie(movie, identifier=IDENTIFIER, time_s=0.1)


def test_what_is_no_live_photo_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "a.mp4", movie_bytes(FRAMES))
    with pytest.raises(UsageError, match="no Live Photo"):
        check_live_output(tmp_path / "b.jpg", open_live_photo(tmp_path / "a.jpg"))
    source, _ = write_pair(tmp_path / "in", PHOTO, FRAMES)
    live = open_live_photo(source)
    with pytest.raises(UsageError, match=r"\.heic or \.jpg"):
        check_live_output(tmp_path / "b.png", live)
    with pytest.raises(FileError, match="would be overwritten"):
        check_live_output(source.with_suffix(".heic"), live)


def test_a_pair_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path / "in", PHOTO, FRAMES)
    live = open_live_photo(source)
    clip = LiveClip(live)
    placement = place(clip)
    (moment,) = moments(clip, placement, [NEW])
    output = tmp_path / "a.jpg"
    made = prepare_output(moment, live, placement.view, output, write_live=True)
    write_image(output, PHOTO, like=made.live.photo, keeps_video_claims=True)
    output.with_suffix(".MOV").mkdir()
    with pytest.raises(OutputError):
        made.write_video(output)
    assert not output.exists()


def test_the_command_writes_a_pair(tmp_path: Path) -> None:
    source, _ = write_pair(tmp_path / "in", PHOTO, FRAMES, kind="HEIF")
    output = tmp_path / "new.heic"
    result = run("restore", "--live", source, "--frame", NEW, "--steps", 1, "--write-live", "-o", output)
    assert result.exit_code == 0, result.output
    assert "Apple pair, content identifier" in result.output
    live = open_live_photo(output)
    assert (live.kind, LiveClip(live).key_index) == (APPLE, NEW)
    assert place(LiveClip(live)).registration.likeness > 0.8
