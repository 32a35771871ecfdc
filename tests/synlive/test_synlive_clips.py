"""Videos and folders of frames: any frame at random, variable rates, rotation, damage; what makes a good pair; HEVC."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from synlive_videos import moving_frames, write_video

from livemoments.distances import psnr_db
from livemoments.errors import FileError, ImageError, UsageError
from livemoments.progress import SILENT
from livemoments.runtime.image_files.photo import write_image
from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size
from livemoments.validate.synlive.clips import FolderClip, VideoClip
from livemoments.validate.synlive.codec import Codec, sample_codec, through_codec
from livemoments.validate.synlive.degradation import image_rng
from livemoments.validate.synlive.pairs import measure_pair, place_crop, start_frame
from livemoments.validate.synlive.sources import PairOptions, moved_pair, open_sources, with_margin

FRAMES = moving_frames(24)
WISH = PairOptions(5, Size(128, 128), neighbours=False)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", FRAMES)


def test_frames_are_read_at_random(video: Path) -> None:
    clip = VideoClip(video, "clip")
    assert (clip.info.frames, clip.info.size, clip.info.rate) == (24, Size(192, 256), Fraction(30))
    everything = list(clip.read(0, 23))
    for frame, original in zip(everything, FRAMES, strict=True):
        assert psnr_db(frame, original, 255) > 30
    for first, last in ((0, 0), (7, 7), (23, 23), (11, 16)):
        for frame, wanted in zip(clip.read(first, last), everything[first : last + 1], strict=True):
            np.testing.assert_array_equal(frame, wanted)


def test_seeking_lands_on_the_frame_in_long_videos(tmp_path: Path) -> None:
    frames = moving_frames(60, Size(64, 96))
    options = {"g": "10", "bf": "2", "crf": "10", "preset": "veryfast"}
    clip = VideoClip(write_video(tmp_path / "long.mp4", frames, options=options), "long")
    everything = list(clip.read(0, 59))
    for index in (3, 9, 10, 11, 29, 30, 45, 59):
        np.testing.assert_array_equal(next(clip.read(index, index)), everything[index])


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("ts", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1:keyint=12:min-keyint=12", "crf": "10"}),
        ("mpg", "mpeg2video", {"g": "12", "bf": "2", "b": "4M"}),
    ],
)
def test_containers_without_an_index_are_read_at_random(
    suffix: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    frames = moving_frames(60, Size(64, 96))
    clip = VideoClip(write_video(tmp_path / f"long.{suffix}", frames, codec=codec, options=options), "long")
    everything = list(clip.read(0, clip.info.frames - 1))
    assert len(everything) == clip.info.frames >= 58
    for index in (1, 11, 12, 13, 30, 47, clip.info.frames - 1):
        np.testing.assert_array_equal(next(clip.read(index, index)), everything[index])


def test_a_cover_picture_is_no_video(tmp_path: Path, video: Path) -> None:
    import av

    cover = cv2.imencode(".jpg", FRAMES[0])[1].tobytes()
    with av.open(str(video)) as source, av.open(str(tmp_path / "covered.mp4"), "w") as target:
        picture = target.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 256, 192, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        copied = target.add_stream_from_template(source.streams.video[0])
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        packet.is_keyframe = True
        target.mux(packet)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    clip = VideoClip(tmp_path / "covered.mp4", "covered")
    assert clip.info.frames == 24
    assert psnr_db(next(clip.read(9, 9)), FRAMES[9], 255) > 30


def test_a_video_whose_size_changes_within_is_named(tmp_path: Path) -> None:
    for name, size, start in (("a.ts", Size(64, 96), 0), ("b.ts", Size(96, 128), 12)):
        options = {"g": "6", "crf": "10", "bf": "0"}
        write_video(tmp_path / name, moving_frames(12, size), times=range(start, start + 12), options=options)
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    clip = VideoClip(joined, "joined")
    with pytest.raises(FileError, match=r"joined\.ts: frame \d+ is 128x96, the first is 96x64"):
        list(clip.read(0, clip.info.frames - 1))


def test_variable_frame_rates_count_frames(tmp_path: Path) -> None:
    times = np.cumsum([0, 1, 1, 5, 1, 2, 1, 1, 9, 1, 1, 1]).tolist()
    clip = VideoClip(write_video(tmp_path / "vfr.mp4", FRAMES[:12], times=times), "vfr")
    assert (clip.info.frames, clip.info.rate) == (12, Fraction(30))
    for index in (0, 3, 8, 11):
        assert psnr_db(next(clip.read(index, index)), FRAMES[index], 255) > 30


@pytest.mark.parametrize(("rotation", "turns"), [(-90, 3), (90, 1), (180, 2)])
def test_rotated_videos_are_turned_upright(tmp_path: Path, video: Path, rotation: int, turns: int) -> None:
    clip = VideoClip(write_video(tmp_path / "turned.mp4", FRAMES[:3], rotation=rotation), "turned")
    upright = np.rot90(FRAMES[1], turns)
    assert clip.info.size == Size(*upright.shape[:2])
    assert psnr_db(next(clip.read(1, 1)), upright, 255) > 30


def test_ten_bits_and_other_tags(tmp_path: Path) -> None:
    cases = [("yuv420p10le", 1, False), ("yuv422p", 6, False), ("yuv444p", 1, True), ("yuv420p", 6, True)]
    for number, (pixel_format, matrix, full_range) in enumerate(cases):
        path = tmp_path / f"{number}.mkv"
        write_video(path, FRAMES[:2], pixel_format=pixel_format, matrix=matrix, full_range=full_range)
        assert psnr_db(next(VideoClip(path, "x").read(1, 1)), FRAMES[1], 255) > 30, cases[number]


def test_bad_videos_are_named(tmp_path: Path, video: Path) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(FileError, match=match) as caught:
            VideoClip(path, "x")
        assert str(path) in caught.value.message
        assert caught.value.fix

    text = tmp_path / "text.mp4"
    text.write_text("no video at all, but long enough to be looked at" * 20)
    refused(text, "cannot be read as a video")
    cut = tmp_path / "cut.mp4"  # the index is at the end
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    refused(cut, "cannot be read as a video")
    refused(write_video(tmp_path / "hdr.mp4", FRAMES[:2], transfer=18), r"is HDR \(HLG\)")
    refused(tmp_path / "none.mp4", "cannot be read")


def test_a_video_that_ends_early_gives_what_it_has(tmp_path: Path) -> None:
    options = {"g": "8", "bf": "0", "crf": "10", "preset": "veryfast", "movflags": "faststart"}
    whole = write_video(tmp_path / "whole.mkv", FRAMES, options=options)
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data)
    clip = VideoClip(broken, "broken")
    assert psnr_db(next(clip.read(0, 0)), FRAMES[0], 255) > 30
    with pytest.raises(FileError, match=r"frame \d+ is damaged or missing|cannot be read as a video"):
        list(clip.read(0, clip.info.frames - 1))


def test_folders_of_frames_are_clips(tmp_path: Path) -> None:
    for number in (1, 2, 9, 10, 11):
        write_image(tmp_path / f"frame{number}.png", FRAMES[number])
    clip = FolderClip(tmp_path, "frames")
    assert (clip.info.frames, clip.info.size) == (5, Size(192, 256))
    np.testing.assert_array_equal(next(clip.read(2, 2)), FRAMES[9])
    np.testing.assert_array_equal(next(clip.read(3, 3)), FRAMES[10])
    write_image(tmp_path / "frame3.png", FRAMES[3][:100])
    with pytest.raises(ImageError, match="is 256x100, the folder's first image is 256x192"):
        list(FolderClip(tmp_path, "frames").read(0, 5))


# --- pairs


def test_motion_is_measured_in_pixels() -> None:
    measure = measure_pair(FRAMES[0], FRAMES[4])
    assert measure.motion_px == pytest.approx(8, abs=0.5)
    assert measure.correlation > 0.95
    assert measure.problem() is None
    large = [cv2.resize(frame, None, fx=4, fy=4) for frame in (FRAMES[0], FRAMES[4])]
    assert measure_pair(*large).motion_px == pytest.approx(32, abs=2)


def test_still_scenes_cuts_and_empty_pictures_are_no_pairs() -> None:
    noisy = np.clip(FRAMES[0] + np.random.default_rng(0).normal(0, 2, FRAMES[0].shape), 0, 255).astype(np.uint8)
    assert "still scene" in (measure_pair(FRAMES[0], noisy).problem() or "")
    other = synthetic_photograph(Size(192, 256), seed=77)
    assert "scene cut" in (measure_pair(FRAMES[0], other).problem() or "")
    black = np.full_like(FRAMES[0], 3)
    assert "empty picture" in (measure_pair(black, FRAMES[0]).problem() or "")
    subject = FRAMES[0].copy()
    subject[60:130, 90:170] = FRAMES[0][60:130, 96:176]
    assert measure_pair(FRAMES[0], subject).problem() is None, "a moving subject before a still background is a pair"


def test_crops_go_where_the_detail_is() -> None:
    image = np.full((256, 512, 3), 128, np.uint8)
    image[:, :256] = FRAMES[0][:1].repeat(256, 0)[:, :256]
    image[::2, :200] //= 2
    places = [place_crop(image, Size(128, 128), np.random.default_rng(seed)) for seed in range(20)]
    assert all(y % 2 == 0 and x % 2 == 0 and 0 <= y <= 128 and 0 <= x <= 384 for y, x in places)
    assert sum(x < 200 for _, x in places) > 17
    assert len(set(places)) > 10
    assert place_crop(image, Size(256, 512), np.random.default_rng(0)) == (0, 0)


def test_pairs_are_spread_evenly() -> None:
    for count in (2, 5, 13):
        starts = sorted(start_frame(slot, 0.37, 1000) for slot in range(count))
        gaps = np.diff([*starts, starts[0] + 1000])
        assert gaps.max() <= 2.7 * gaps.min() + 3
        assert starts[0] >= 0
        assert starts[-1] < 1000


def test_photographs_are_moved() -> None:
    photograph = synthetic_photograph(with_margin(Size(128, 160)), seed=5)
    key, moved = moved_pair(cv2.GaussianBlur(photograph, (0, 0), 1), Size(128, 160), seed=1)
    assert key.shape == moved.shape == (128, 160, 3)
    assert measure_pair(key, moved).problem() is None
    for size in (Size(128, 160), Size(256, 256), Size(300, 130), Size(768, 1024)):
        outer = with_margin(size)
        left = moved_pair(np.zeros((outer.height, outer.width, 3), np.uint8), None, seed=0)[0]
        assert size.height <= left.shape[0] < size.height + 32
        assert size.width <= left.shape[1] < size.width + 32


def test_sources_are_found_and_the_unusable_named(tmp_path: Path, video: Path) -> None:
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(video, folder / "b.mp4")
    shutil.copy(video, folder / "deep" / "a.MOV")
    write_image(folder / "b.jpg", FRAMES[0])  # a Live Photo's still: no clip
    write_image(folder / "c.jpg", FRAMES[0])
    (folder / ".hidden.mp4").write_text("x")
    for number in range(7):
        write_image(folder / "frames" / f"{number}.png", FRAMES[number])

    def opened(skip: bool = False) -> tuple[list[str], dict[str, str]]:
        sources, unusable = open_sources(folder, WISH, photographs=False, skip_unusable=skip, progress=SILENT)
        return [source.name for source in sources], unusable

    assert opened() == (["b.mp4", "deep/a.MOV", "frames"], {})
    write_video(folder / "small.mp4", moving_frames(8, Size(96, 96)))
    write_video(folder / "short.mp4", FRAMES[:5])
    (folder / "text.mkv").write_text("x" * 500)
    with pytest.raises(
        ImageError, match=r"3 of 6 videos cannot be used: short.mp4, small.mp4, text.mkv; short.mp4 has"
    ):
        opened()
    names, unusable = opened(skip=True)
    assert names == ["b.mp4", "deep/a.MOV", "frames"]
    assert unusable["short.mp4"] == "has 5 frames, no two of them 5 apart"
    assert unusable["small.mp4"] == "is 96x96, and 128x128 are needed"
    assert "cannot be read as a video" in unusable["text.mkv"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no videos"):
        open_sources(tmp_path / "empty", WISH, photographs=False, skip_unusable=False, progress=SILENT)
    with pytest.raises(ImageError, match="no such folder"):
        open_sources(tmp_path / "none", WISH, photographs=True, skip_unusable=False, progress=SILENT)


# --- the codec


def test_the_codec_is_deterministic_and_close_to_its_rate() -> None:
    frames = moving_frames(16, Size(256, 384), seed=9)
    parameters = sample_codec(image_rng(0, "a"))
    decoded, bits = through_codec(parameters, frames)
    again, _ = through_codec(parameters, frames)
    for first, second in zip(decoded, again, strict=True):
        np.testing.assert_array_equal(first, second)
    assert 0.75 * parameters.bits_per_pixel < bits < 1.11 * parameters.bits_per_pixel
    for frame, original in zip(decoded, frames, strict=True):
        small = original.reshape(128, 2, 192, 2, 3).mean(axis=(1, 3))
        assert 20 < psnr_db(frame, small, 255) < 45
    errors = []
    for rate in (0.02, 0.2, 2.0):
        out, _ = through_codec(Codec(scale=2, bits_per_pixel=rate), frames)
        errors.append(psnr_db(out[8], frames[8].reshape(128, 2, 192, 2, 3).mean(axis=(1, 3)), 255))
    assert errors == sorted(errors)


@pytest.mark.parametrize("size", [Size(96, 96), Size(72, 200)])
def test_the_codec_takes_small_frames(size: Size) -> None:
    """x265 ended the process for some, 48 x 48 among them."""
    frames = moving_frames(12, size, seed=3)
    decoded, _ = through_codec(Codec(scale=2, bits_per_pixel=1.0), frames)
    for frame, original in zip(decoded, frames, strict=True):
        assert frame.shape == (size.height // 2, size.width // 2, 3)
        small = original.reshape(size.height // 2, 2, size.width // 2, 2, 3).mean(axis=(1, 3))
        assert psnr_db(frame, small, 255) > 25


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("full_range", [True, False])
def test_the_codec_keeps_colours(matrix: str, full_range: bool) -> None:
    frames = [np.full((64, 96, 3), (200, 40, 90), np.uint8)] * 3
    parameters = Codec(scale=1, bits_per_pixel=4.0, matrix=matrix, full_range=full_range)  # type: ignore[arg-type]
    decoded, _ = through_codec(parameters, frames)
    assert np.abs(decoded[1].astype(int) - frames[1]).max() <= 3
    with pytest.raises(UsageError, match="multiples of 4"):
        through_codec(Codec(scale=2, bits_per_pixel=1.0), [np.zeros((66, 96, 3), np.uint8)])
