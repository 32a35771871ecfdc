"""A clip laid over its photo: which frame belongs to the photo's instant, and what both show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from livemoments.errors import FileError
from livemoments.runtime.image_files.photo import MIN_SIDE_PX
from livemoments.runtime.live_photo.clip import LiveClip
from livemoments.runtime.live_photo.registration import (
    MIN_LIKENESS,
    Registration,
    View,
    common_view,
    likeness,
    register,
)
from livemoments.types import Size

_FINE_PX = 320
"""Longest side at which frames are compared with the photo to find its instant."""
_FULL_SHARE = 0.999


@dataclass(frozen=True, eq=False)
class Placement:
    """How a clip lies over its photo.

    Attributes:
        key_index: the frame at the photo's instant.
        key_from: what says so.
        registration: of that frame.
        view: what photo and clip both show.
        notes: what was found and done, in words.
    """

    key_index: int
    key_from: str
    registration: Registration
    view: View
    notes: tuple[str, ...]


def place(clip: LiveClip, *, force: bool = False) -> Placement:
    """Find the photo's instant and view in its clip.

    Args:
        clip: the video of an opened Live Photo.
        force: take photo and video that do not look alike.

    Raises:
        FileError: photo and video show different things, are turned against each other, or share hardly anything; or a
            frame is damaged.
    """
    live = clip.live
    photo = live.photo.pixels
    notes: list[str] = []
    key, key_from = clip.key_index, live.key_time_from
    if key is None:
        key, key_from = _most_alike(clip), "likeness to the photo"
        notes.append(f"nothing says when the photo was taken: frame {key} at {clip.times_s[key]:.3f} s is most like it")
    frame = next(clip.frames(key, key))
    found = register(photo, frame)
    if found.likeness < MIN_LIKENESS:
        message = (
            f"photo and video do not show the same (correlation {found.likeness:.2f}): edited, or of another photo?"
        )
        if not force:
            fix = "name the video of this photo with --video, or say --force to lay them over each other by their sizes"
            raise FileError(live.video.path, message, fix=fix)
        notes.append(f"{message} Taken by --force")
    size = live.photo.size
    aperture = _aperture(clip, photo, frame, found)
    view = common_view(found, clip.size, size, inside=aperture)
    if view is None or min(view.frame.height, view.frame.width) < MIN_SIDE_PX:
        message = f"photo and video share too little (the video is turned by {found.turn_deg:.0f} degrees)"
        raise FileError(live.video.path, message, fix="name the video of this photo with --video")
    notes += _words(found, view, size, clip, aperture)
    return Placement(key, key_from, found, view, tuple(notes))


def _most_alike(clip: LiveClip) -> int:
    """The frame whose picture is most like the photo's, all laid over it as the middle one is."""
    photo = clip.live.photo.pixels
    middle = len(clip.times_s) // 2
    found = register(photo, next(clip.frames(middle, middle)))
    scores = [likeness(photo, frame, found, longest_px=_FINE_PX) for frame in clip.frames()]
    return int(np.argmax(scores))


def _aperture(
    clip: LiveClip, photo: np.ndarray, frame: npt.NDArray[np.uint8], found: Registration
) -> tuple[int, int, int, int] | None:
    """The clean aperture (left, top, right, bottom), where what lies outside it is no picture.

    Apple's clips have real picture outside (players crop it away), which is what the photo shows too; elsewhere there
    may be padding.
    """
    shown = clip.live.movie.clean_aperture
    if shown is None:
        return None
    size = clip.size
    if (shown.width > shown.height) != (size.width > size.height):
        shown = Size(shown.width, shown.height)
    if shown.width > size.width or shown.height > size.height:
        return None
    left, top = (size.width - shown.width) // 2, (size.height - shown.height) // 2
    inside = left, top, left + shown.width, top + shown.height
    outside = np.ones(frame.shape[:2], bool)
    outside[top : top + shown.height, left : left + shown.width] = False
    if likeness(photo, frame, found, longest_px=_FINE_PX, only=outside) >= MIN_LIKENESS:
        return None
    return inside


def _words(
    found: Registration, view: View, size: Size, clip: LiveClip, aperture: tuple[int, int, int, int] | None
) -> list[str]:
    said = []
    if found.is_estimated:
        turn = f", turned by {found.turn_deg:.1f} degrees" if abs(found.turn_deg) >= 0.05 else ""
        said.append(
            f"a video pixel is {found.scale:.3f} photo pixels{turn}: {found.matches} details agree, correlation "
            f"{found.likeness:.2f}"
        )
    else:
        said.append(f"too few details to lay the video over the photo: placed by the sizes, {clip.size} on {size}")
    if found.mirrored:
        said.append("the video is the photo's mirror image: its frames are mirrored")
    if aperture is not None:
        said.append(f"what lies outside the video's clean aperture, {clip.live.movie.clean_aperture}, is no picture")
    if view.keeps < _FULL_SHARE:
        place = f"{view.crop} at {view.x}, {view.y}"
        said.append(f"the video does not cover the whole photo: cropped to {place} ({view.keeps:.1%} of it)")
    return said
