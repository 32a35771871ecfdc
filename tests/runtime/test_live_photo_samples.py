"""Files of real phones, where they are: LIVEMOMENTS_ASSETS names the folder that holds them (docs/live_photos.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_photo_files import apple_movie, exif_block, photo_and_frames, still_bytes, write

pytest.importorskip("av", reason="the extra 'livephoto' is not installed")
pytest.importorskip("pillow_heif", reason="the extra 'livephoto' is not installed")

from livemoments.checkpoints import trained_bundle
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.photo import Photo, write_image
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.moments import moments
from livemoments.runtime.live_photo.opened import APPLE, MOTION, open_live_photo
from livemoments.runtime.live_photo.placement import place
from livemoments.runtime.live_photo.scores import score_frames
from livemoments.runtime.live_photo.writing import prepare_output
from livemoments.runtime.restore import restore
from livemoments.types import Size

ASSETS = os.environ.get("LIVEMOMENTS_ASSETS")
needs_assets = pytest.mark.skipif(ASSETS is None, reason="LIVEMOMENTS_ASSETS names no folder of real samples")
MEMORY_LIMIT_BYTES = 1 << 30
SAMPLES = {
    "apple-live-photo/train.jpg": (APPLE, 22, 7, 0.48, Size(3024, 4032), (0.98, 1.0)),
    "samsung-motion-photo/photo-sg22-ultra.heic": (MOTION, 55, 54, 2.990844, Size(4000, 3000), (0.999, 1.0)),
}
"""Kind, frames, the frame at the photo's instant, that instant, the photo's size, how much of it the video covers."""
_REDUCTION = 12


def reduced(photo: Photo) -> Photo:
    size = (photo.size.width // _REDUCTION, photo.size.height // _REDUCTION)
    return replace(photo, pixels=cv2.resize(photo.pixels, size, interpolation=cv2.INTER_AREA))


@needs_assets
@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_a_real_sample_from_end_to_end(tmp_path: Path, name: str) -> None:
    """Read, list, laid over, restored (made small: the whole takes the small network half an hour), written back."""
    path = Path(ASSETS or "") / name
    kind, frames, key, key_time_s, size, (least, most) = SAMPLES[name]
    live = open_live_photo(path)
    clip = LiveClip(live)
    assert (live.kind, len(clip.times_s), clip.key_index, live.photo.size) == (kind, frames, key, size)
    assert live.key_time_s == pytest.approx(key_time_s)
    placement = place(clip)
    assert placement.registration.is_estimated
    assert placement.registration.likeness > 0.98
    assert least <= placement.view.keeps <= most
    scores = score_frames(clip, placement.key_index)
    assert len(scores) == frames
    (moment,) = moments(clip, placement, [frames // 2])
    images = moment.live
    assert images.photo_frame is not None
    photo = reduced(images.photo)
    fitting = (photo.size.width // 2, photo.size.height // 2)
    half = [
        replace(image, pixels=cv2.resize(image.pixels, fitting, interpolation=cv2.INTER_AREA))
        for image in (images.frame, images.photo_frame)
    ]
    small = LivePhoto(half[0], photo, half[1])
    result = restore(trained_bundle(), small, output=tmp_path / "small.png")
    assert result.image.shape == small.photo.pixels.shape
    output = tmp_path / f"new{'.jpg' if kind == APPLE else '.heic'}"
    made = prepare_output(moment, live, placement.view, output, write_live=True)
    large = cv2.resize(images.frame.pixels, images.photo.pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    write_image(output, large, like=made.live.photo, trailer=made.trailer, keeps_video_claims=True)
    made.write_video(output)
    again = open_live_photo(output)
    assert again.kind == kind
    assert again.key_time_s == pytest.approx(moment.time_s, abs=2e-3)
    assert LiveClip(again).key_index == moment.index


@pytest.mark.slow
@pytest.mark.process
def test_twelve_megapixels_are_read_in_a_gigabyte(tmp_path: Path) -> None:
    photo, frames = photo_and_frames(5, 12, photo_size=Size(756, 1008), video_size=Size(1080, 1440))
    large = cv2.resize(photo, (4032, 3024), interpolation=cv2.INTER_CUBIC)
    write(tmp_path / "a.jpg", still_bytes(np.ascontiguousarray(large), exif=exif_block(identifier="E" * 36)))
    write(tmp_path / "a.mov", apple_movie(frames, "E" * 36))
    code = (
        "import json, sys\n"
        "from livemoments.heap import peak_resident_bytes\n"
        "from livemoments.runtime.live_photo.clip import LiveClip\n"
        "from livemoments.runtime.live_photo.moments import moments\n"
        "from livemoments.runtime.live_photo.opened import open_live_photo\n"
        "from livemoments.runtime.live_photo.placement import place\n"
        "from livemoments.runtime.live_photo.scores import score_frames\n"
        "clip = LiveClip(open_live_photo(sys.argv[1]))\n"
        "placement = place(clip)\n"
        "score_frames(clip, placement.key_index)\n"
        "(moment,) = moments(clip, placement, [2])\n"
        "print(json.dumps([peak_resident_bytes(), list(moment.live.photo.pixels.shape)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.jpg")], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    most_bytes, shape = json.loads(done.stdout.splitlines()[-1])
    assert shape[0] * shape[1] > 11_000_000
    assert most_bytes < MEMORY_LIMIT_BYTES
