"""Live Photos that are damaged or made to harm: one clear error or a result, never a traceback, bounded work."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live_photo_files import apple_movie, box, item, motion_xmp, movie_bytes, part, photo_and_frames, still_bytes, write
from live_photo_mutations import mutate, originals, read_all
from places import ROOT

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.errors import FileError, ImageError
from livemoments.runtime.live_photo import sef
from livemoments.runtime.live_photo.boxes import MAX_BOXES, BoxError, walk
from livemoments.runtime.live_photo.claims import read_claims
from livemoments.runtime.live_photo.clip import MAX_FRAME_PIXELS, MAX_FRAMES, LiveClip
from livemoments.runtime.live_photo.embedded import find_embedded, movie_end
from livemoments.runtime.live_photo.movie import Movie, MovieError, read_movie
from livemoments.runtime.live_photo.opened import open_live_photo
from livemoments.runtime.video.span import Span
from livemoments.types import Size

SEED = int.from_bytes(os.urandom(3), "big")
PHOTO, FRAMES = photo_and_frames(SEED % 1000, 4, photo_size=Size(96, 128), video_size=Size(96, 128))
MEMORY_LIMIT_BYTES = 1 << 30
CPU_LIMIT_S = 10.0
"""For one file; they take a tenth of a second."""


def movie_of(path: Path, data: bytes) -> Movie:
    return read_movie(Span.whole(write(path, data)))


def test_the_files_are_good_before_they_are_damaged(tmp_path: Path) -> None:
    assert {read_all(tmp_path, *files) for files in originals(SEED % 1000)} == {"ok"}


def test_some_dozens_of_mutations(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    files = originals(SEED % 1000)
    for number in range(48):
        still, video = files[number % len(files)]
        if video is not None and number % 4:
            video = mutate(video, rng)
        else:
            still = mutate(still, rng)
        try:
            read_all(tmp_path, still, video)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, file {number}") from error


@pytest.mark.slow
@pytest.mark.process
def test_300_mutations_stay_within_time_and_memory() -> None:
    script = ROOT / "tests" / "support" / "live_photo_mutations.py"
    done = subprocess.run(
        [sys.executable, str(script), str(SEED), "300"], capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, f"seed {SEED}: {done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(found["outcomes"].values()) == 300
    assert found["outcomes"]["ok"] > 0
    assert found["most_bytes"] < MEMORY_LIMIT_BYTES
    assert found["slowest_s"] < CPU_LIMIT_S


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.97, 0.999])
def test_truncated_movies(tmp_path: Path, share: float) -> None:
    movie = apple_movie(FRAMES, None, None)
    write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "a.mov", movie[: int(len(movie) * share)])
    with pytest.raises(FileError, match=r"a\.mov") as refused:
        LiveClip(open_live_photo(tmp_path / "a.jpg"))
    assert refused.value.fix


def test_truncated_motion_photos_say_so(tmp_path: Path) -> None:
    """The header comes first here, and samples are missing: the frames that there are can still be read."""
    movie = faststart(movie_bytes(FRAMES))
    xmp = motion_xmp(item("Primary", "image/jpeg", 0), item("MotionPhoto", "video/mp4", len(movie) - 500))
    path = write(tmp_path / "a.jpg", still_bytes(PHOTO, xmp=xmp) + movie[:-500])
    live = open_live_photo(path)
    assert any("cut short" in note for note in live.notes)


def faststart(movie: bytes) -> bytes:
    """The same with ``moov`` ahead of ``mdat``; its chunk offsets are left wrong, which nobody reads here."""
    moov = part(movie, b"moov")
    rest = movie.replace(moov, b"")
    at = rest.index(b"mdat") - 4
    return rest[:at] + moov + rest[at:]


def test_boxes_nested_without_end(tmp_path: Path) -> None:
    data = b""
    for _ in range(50_000):
        data = struct.pack(">I4s", min(8 + len(data), 0xFFFFFFFF), b"moov") + data
    assert movie_of(tmp_path / "a", data).video_tracks == 0
    nested = box(b"moov", box(b"trak", box(b"mdia", data)))
    assert movie_of(tmp_path / "b", nested).video_tracks == 0


@pytest.mark.parametrize("size", [2, 7, 0x7FFFFFFF, 0xFFFFFFFF])
def test_boxes_that_lie_about_their_size(tmp_path: Path, size: int) -> None:
    data = struct.pack(">I4s", size, b"moov") + bytes(100)
    with pytest.raises(BoxError, match="are left"):
        list(walk(data))
    with pytest.raises(MovieError):
        movie_of(tmp_path / "a", data)
    long = struct.pack(">I4sQ", 1, b"moov", (1 << 63) + size) + bytes(100)
    with pytest.raises(BoxError, match="are left"):
        list(walk(long))


def test_boxes_without_number() -> None:
    with pytest.raises(BoxError, match=f"more than {MAX_BOXES}"):
        list(walk(box(b"free") * (MAX_BOXES + 1)))


def test_counts_that_lie(tmp_path: Path) -> None:
    movie = apple_movie(FRAMES)
    at = movie.rindex(b"elst") + 8
    changed = movie[:at] + struct.pack(">I", 0xFFFFFFF0) + movie[at + 4 :]
    with pytest.raises(MovieError, match="edit list"):
        movie_of(tmp_path / "a", changed)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as stream:  # sparse
        stream.write(struct.pack(">I4s", 0x7FFFFFF0, b"moov"))
        stream.truncate(0x7FFFFFF0)
    with pytest.raises(MovieError, match="MiB long"):
        read_movie(Span.whole(path))


def test_files_of_gigabytes_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", still_bytes(PHOTO))
    with path.open("r+b") as stream:
        stream.truncate(3 << 30)  # sparse
    with pytest.raises(FileError, match="MiB long"):
        open_live_photo(path)


def test_a_video_without_frames(tmp_path: Path) -> None:
    movie = apple_movie(FRAMES, None, None)
    at = movie.index(b"stsz") + 4 + 8
    write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "a.mov", movie[:at] + bytes(4) + movie[at + 4 :])
    with pytest.raises(FileError, match=r"no frames|cannot be read as a video"):
        LiveClip(open_live_photo(tmp_path / "a.jpg"))


def test_pixel_bombs(tmp_path: Path) -> None:
    """Sizes in headers are refused before anything of that size is made."""
    still = still_bytes(PHOTO, kind="HEIF")
    at = still.index(b"ispe") + 8
    write(tmp_path / "a.heic", still[:at] + struct.pack(">II", 60_000, 60_000) + still[at + 8 :])
    write(tmp_path / "a.mov", movie_bytes(FRAMES))
    with pytest.raises(ImageError):
        open_live_photo(tmp_path / "a.heic")
    movie = movie_bytes(FRAMES)
    at = movie.index(b"avc1", movie.index(b"stsd")) + 4 + 24
    write(tmp_path / "b.jpg", still_bytes(PHOTO))
    write(tmp_path / "b.mov", movie[:at] + struct.pack(">HH", 65_535, 65_535) + movie[at + 4 :])
    with pytest.raises(FileError):
        LiveClip(open_live_photo(tmp_path / "b.jpg"))


def test_frames_larger_than_their_header_says(tmp_path: Path) -> None:
    """The stream's own parameters decide what a decoder allocates."""
    large = np.zeros((3088, 4112, 3), np.uint8)
    assert large.shape[0] * large.shape[1] > MAX_FRAME_PIXELS
    movie = movie_bytes([large])
    at = movie.index(b"avc1", movie.index(b"stsd")) + 4 + 24
    write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "a.mov", movie[:at] + struct.pack(">HH", 320, 240) + movie[at + 4 :])
    with pytest.raises(FileError):
        LiveClip(open_live_photo(tmp_path / "a.jpg"))


def test_clips_longer_than_any_live_photos(tmp_path: Path) -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "a.mov", movie_bytes([picture] * (MAX_FRAMES + 1)))
    with pytest.raises(FileError, match=f"more than {MAX_FRAMES} frames"):
        LiveClip(open_live_photo(tmp_path / "a.jpg"))


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile {}\n"])
def test_playlists_open_no_other_file(tmp_path: Path, text: str) -> None:
    """FFmpeg would follow them: only QuickTime and MP4 are ever handed to it."""
    secret = write(tmp_path / "other" / "secret.mp4", movie_bytes(FRAMES))
    write(tmp_path / "a.jpg", still_bytes(PHOTO))
    write(tmp_path / "a.mov", text.format(secret).encode())
    with pytest.raises(FileError, match="cannot be read as a video"):
        open_live_photo(tmp_path / "a.jpg")


def test_many_places_that_look_like_a_movie(tmp_path: Path) -> None:
    noise = (struct.pack(">I4s4sI", 24, b"ftyp", b"isom", 0) + bytes(8)) * 20_000
    data = still_bytes(PHOTO) + noise
    assert find_embedded(write(tmp_path / "a.jpg", data), data, read_claims(None)) is None


def test_trailers_that_lie() -> None:
    head = b"SEFH" + struct.pack("<II", 107, 0xFFFFFFFF) + struct.pack("<III", 0x0A300000, 0xFFFFFFFF, 0xFFFFFFFF)
    for length in (0, 11, len(head), 0xFFFFFFFF):
        assert list(sef.blocks(b"x" * 50 + head + struct.pack("<I", length) + b"SEFT")) == []
    name = struct.pack("<HHI", 0, 0x0A30, 0xFFFFFFF0) + b"MotionPhoto_Data"
    entry = struct.pack("<HHII", 0, 0x0A30, len(name), len(name))
    lying = name + b"SEFH" + struct.pack("<II", 107, 1) + entry
    assert list(sef.blocks(lying + struct.pack("<I", 24) + b"SEFT")) == []


def test_xmp_bombs() -> None:
    deep = motion_xmp().replace("</rdf:Description>", "<a>" * 5000 + "</a>" * 5000 + "</rdf:Description>")
    assert not read_claims(deep.encode()).is_motion
    entities = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>' + motion_xmp()
    assert not read_claims(entities.encode()).is_motion
    many = motion_xmp(*[item("MotionPhoto", "video/mp4", 5)] * 500)
    assert len(read_claims(many.encode()).items) <= 64


def test_the_end_of_a_movie_is_never_behind_the_file() -> None:
    movie = movie_bytes(FRAMES)
    rng = random.Random(SEED)
    for _ in range(200):
        data = mutate(movie + os.urandom(20), rng)
        end, _ = movie_end(data, 0)
        assert 0 <= end <= len(data)
