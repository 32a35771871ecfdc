"""The frames of a Live Photo's video, as photos in a known colour space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from livemoments.errors import UsageError
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.live_photo.opened import OpenedLivePhoto
from livemoments.runtime.video.reader import VideoReader
from livemoments.runtime.video.yuv import frame_to_photo_range
from livemoments.types import Size

MAX_FRAME_PIXELS = 4096 * 3072
"""Phones record clips of 1.6 to 3.1 megapixels; 4K has 8.3."""
MAX_FRAMES = 3600
_CONTAINER = "mov"
"""FFmpeg's name for QuickTime and MP4; nothing else is ever opened."""


class LiveClip:
    """A Live Photo's video.

    Args:
        live: the Live Photo.

    Raises:
        FileError: the video cannot be decoded, or is larger or longer than any Live Photo's.
        ModuleNotFoundError: PyAV is not installed.

    Attributes:
        times_s: when each frame is shown, in seconds, ascending.
        size: of the upright frames, in pixels.
        key_index: the frame at the photo's instant; ``None`` where nothing says when that was.
    """

    def __init__(self, live: OpenedLivePhoto) -> None:
        self.live = live
        self._profile: bytes | None = None
        self._done: set[str] = set()
        self._reader = VideoReader(
            live.video,
            container=_CONTAINER,
            max_pixels=MAX_FRAME_PIXELS,
            max_frames=MAX_FRAMES,
            convert=self._convert,
        )
        self.times_s = tuple(float(time) for time in self._reader.times)
        self.key_index = None if live.key_time_s is None else self.nearest(live.key_time_s)

    @property
    def size(self) -> Size:
        """Of the upright frames, in pixels."""
        return self._reader.size

    @property
    def profile(self) -> bytes | None:
        """The colour profile of the frame that was read last; ``None``: sRGB."""
        return self._profile

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the frames' colours, and where the photo's instant lies beside the clip; in words."""
        notes = [f"the video is {done}" for done in sorted(self._done)]
        time_s = self.live.key_time_s
        if time_s is not None and not self.times_s[0] - 0.1 <= time_s <= self.times_s[-1] + 0.1:
            nearest = self.times_s[self.nearest(time_s)]
            notes.append(f"the photo's instant, {time_s:.3f} s, is outside the clip; nearest: {nearest:.3f} s")
        return tuple(notes)

    def nearest(self, time_s: float) -> int:
        """The frame whose time is nearest; the earlier of two."""
        return int(np.argmin(np.abs(np.asarray(self.times_s) - time_s)))

    def at(self, time_s: float) -> int:
        """The frame nearest to a time that a user named.

        Raises:
            UsageError: it is outside the clip by more than a tenth of a second.
        """
        first, last = self.times_s[0], self.times_s[-1]
        if not first - 0.1 <= time_s <= last + 0.1:
            fix = f"use a time from {first:.2f}s to {last:.2f}s; livemoments frames lists them"
            raise UsageError(f"{time_s:g} s is outside the clip", fix=fix)
        return self.nearest(time_s)

    def check(self, index: int) -> int:
        """A frame's number that a user named, counted from 0.

        Raises:
            UsageError: there is none of that number.
        """
        if not 0 <= index < len(self.times_s):
            fix = f"use 0 to {len(self.times_s) - 1}; livemoments frames lists them"
            raise UsageError(f"there is no frame {index}", fix=fix)
        return index

    def frames(self, first: int = 0, last: int | None = None) -> Iterator[npt.NDArray[np.uint8]]:
        """Frames in order, (H, W, 3) uint8 RGB, upright; one is held at a time.

        Raises:
            FileError: one is damaged or missing.
        """
        return self._reader.read(first, len(self.times_s) - 1 if last is None else last)

    def photo(self, index: int) -> Photo:
        """One frame with its colour profile.

        Raises:
            FileError: it is damaged or missing.
        """
        pixels = next(self.frames(index, index))
        return Photo(pixels, icc_profile=self._profile, path=self.live.video.path, format="video")

    def _convert(self, frame: Any) -> npt.NDArray[np.uint8]:
        pixels, self._profile, done = frame_to_photo_range(frame)
        if done is not None:
            self._done.add(done)
        return pixels
