"""Moments of a Live Photo as what restoring takes: the frame, the photo, and the frame at the photo's instant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.exif import shift_time
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.image_files.tiff_tags import TiffError
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.placement import Placement

_TIME = re.compile(r"(\d{1,6}(?:\.\d{0,6})?|\.\d{1,6})\s*(s|ms)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Moment:
    """One moment, ready for :func:`livemoments.runtime.restore.restore`.

    Attributes:
        index: the frame's number, from 0.
        time_s: when it is shown.
        live: the three images, all of the view that photo and video share; the photo's EXIF states the new instant.
        notes: what was done to make them, in words.
    """

    index: int
    time_s: float
    live: LivePhoto[Photo]
    notes: tuple[str, ...]


def parse_time(text: str) -> float:
    """``1.2s``, ``1.2`` or ``1200ms`` in seconds.

    Raises:
        UsageError: it is none of these.
    """
    match = _TIME.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"'{text}' is not a time in the clip", fix="write e.g. 1.2s or 1200ms")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def moments(clip: LiveClip, placement: Placement, indices: Sequence[int]) -> Iterator[Moment]:
    """The moments of some frames; photo and key frame are prepared once.

    Args:
        clip: the Live Photo's video.
        placement: how it lies over the photo.
        indices: frames, from 0.

    Raises:
        FileError: a frame is damaged or missing.
    """
    view, whole = placement.view, clip.live.photo
    photo = replace(whole, pixels=view.photo_pixels(whole.pixels))
    key = _in_view(clip, placement, placement.key_index)
    key_time_s = clip.live.key_time_s
    key_s = clip.times_s[placement.key_index] if key_time_s is None else key_time_s
    for index in indices:
        time_s = clip.times_s[index]
        frame = key if index == placement.key_index else _in_view(clip, placement, index)
        exif, notes = _shifted(photo.exif, time_s - key_s)
        live = LivePhoto(frame, replace(photo, exif=exif), key, name=f"{clip.live.path.stem}-{time_s:.2f}s")
        yield Moment(index, time_s, live, (*clip.live.notes, *clip.notes, *placement.notes, *notes))


def _in_view(clip: LiveClip, placement: Placement, index: int) -> Photo:
    frame = clip.photo(index)
    return replace(frame, pixels=placement.view.frame_pixels(frame.pixels))


def _shifted(exif: bytes | None, seconds: float) -> tuple[bytes | None, tuple[str, ...]]:
    """EXIF with the moment's own time, and what to say about it."""
    if exif is None:
        return None, ()
    try:
        shifted, is_moved = shift_time(exif, seconds)
    except TiffError:
        return exif, ("the photo's EXIF is broken: its time stays",)
    return shifted, (f"the time in EXIF is moved by {seconds:+.3f} s",) if is_moved else ()
