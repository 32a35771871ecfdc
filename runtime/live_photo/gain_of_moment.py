"""The gain map of a photo carried to another moment of its Live Photo.

What an HDR display shows brighter (a lamp, the sky, a reflection) moves with the scene. Where the clip tells how it
moved, the map moves with it; where it does not (what was hidden, what left the picture), the gain is the one that
colours like these have elsewhere in the photo.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.gain_map import GainMap
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.live_photo.registration import View
from livemoments.types import Size

_FLOW_PX = 512
"""Longest side at which motion is estimated."""
_SLACK_PX, _SLACK_SHARE = 1.0, 0.1
"""How far from its start going there and back may end, in pixels of that size, and of the way's length."""
_LEVELS, _LUMA_LEVELS = 8, 32
"""Of a colour channel, and of luma, in the tables from colours to gains."""
_MIN_COUNT = 8
"""Pixels of a colour below which its luma decides."""
_FEATHER_PX = 2.0
_UNLIKE = 16.0
"""Of 255, after a blur: colours this far apart are not the same place, wherever the motion leads."""

Picture = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CarriedGainMap:
    """A moment's gain map.

    Attributes:
        gain: of the view that the moment shows.
        followed: the share of the picture whose gain moved with the scene; the rest is judged by colour.
    """

    gain: GainMap
    followed: float


def carry_gain_map(gain: GainMap, photo: Size, view: View, live: LivePhoto[Photo]) -> CarriedGainMap:
    """The gain map of a moment.

    Args:
        gain: of the whole photo.
        photo: the whole photo's size.
        view: what photo and clip both show.
        live: the moment's images in that view; its photo frame lies at the photo's instant.
    """
    assert live.photo_frame is not None  # a Live Photo's moments have one
    cut = _cut(gain.pixels, photo, view)
    height, width = cut.shape[:2]
    scale = min(1.0, _FLOW_PX / max(height, width))
    small = Size(max(16, round(height * scale)), max(16, round(width * scale)))
    key, frame = _resized(live.photo_frame.pixels, small), _resized(live.frame.pixels, small)
    flow, is_sure = _flow_to_key(key, frame)
    x, y = _grid(Size(height, width))
    x += cv2.resize(flow[..., 0], (width, height)) * np.float32(width / small.width)
    y += cv2.resize(flow[..., 1], (width, height)) * np.float32(height / small.height)
    moved = cv2.remap(cut, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    guessed = cv2.resize(_by_colour(key, _resized(cut, small), frame), (width, height))
    share = cv2.resize(cv2.GaussianBlur(is_sure.astype(np.float32), (0, 0), _FEATHER_PX), (width, height))
    if cut.ndim == 3:
        share = share[..., None]
    mixed = share * moved + (1 - share) * guessed
    return CarriedGainMap(replace(gain, pixels=np.rint(mixed).clip(0, 255).astype(np.uint8)), float(is_sure.mean()))


def _resized(picture: Picture, size: Size) -> Picture:
    return np.asarray(cv2.resize(picture, (size.width, size.height), interpolation=cv2.INTER_AREA), np.uint8)


def _grid(size: Size) -> tuple[Plane, Plane]:
    """The columns and rows of every pixel."""
    x, y = np.meshgrid(np.arange(size.width, dtype=np.float32), np.arange(size.height, dtype=np.float32))
    return x, y


def _cut(pixels: Picture, photo: Size, view: View) -> Picture:
    """The part of the map over the view, at the map's resolution."""
    down, across = pixels.shape[0] / photo.height, pixels.shape[1] / photo.width
    size = (max(1, round(view.crop.width * across)), max(1, round(view.crop.height * down)))
    step_x, step_y = view.crop.width * across / size[0], view.crop.height * down / size[1]
    matrix = np.array(
        [
            [step_x, 0, view.x * across + step_x / 2 - 0.5],
            [0, step_y, view.y * down + step_y / 2 - 0.5],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _flow_to_key(key: Picture, frame: Picture) -> tuple[Plane, npt.NDArray[np.bool_]]:
    """Where each pixel of the frame lies in the key frame, (H, W, 2), and where that is sure."""
    grey_key, grey = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (key, frame))
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    there = np.asarray(estimator.calc(grey, grey_key, np.zeros((*grey.shape, 2), np.float32)), np.float32)
    back = np.asarray(estimator.calc(grey_key, grey, np.zeros((*grey.shape, 2), np.float32)), np.float32)
    height, width = grey.shape
    x, y = _grid(Size(height, width))
    x, y = x + there[..., 0], y + there[..., 1]
    returned = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    off = np.linalg.norm(there + returned, axis=2)
    is_inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    seen = cv2.remap(key, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    unlike = cv2.GaussianBlur(cv2.absdiff(seen, frame).max(axis=2).astype(np.float32), (0, 0), _FEATHER_PX)
    is_back = off <= _SLACK_PX + _SLACK_SHARE * np.linalg.norm(there, axis=2)
    return there, is_inside & is_back & (unlike <= _UNLIKE)


def _by_colour(key: Picture, gain: Picture, frame: Picture) -> Plane:
    """The mean gain of each colour of the key frame, looked up by the frame's colours."""
    values = gain.reshape(gain.shape[0] * gain.shape[1], -1).astype(np.float64)
    result = np.empty((frame.shape[0] * frame.shape[1], values.shape[1]), np.float64)
    result[:] = values.mean(axis=0)
    for names, of_key, of_frame in (
        (_LUMA_LEVELS, _luma(key), _luma(frame)),
        (_LEVELS**3, _colour(key), _colour(frame)),
    ):
        counts = np.bincount(of_key, minlength=names)
        sums = np.stack([np.bincount(of_key, column, minlength=names) for column in values.T], axis=1)
        is_known = counts[of_frame] >= _MIN_COUNT
        means = sums / np.maximum(counts, 1)[:, None]
        result[is_known] = means[of_frame[is_known]]
    return np.asarray(result.reshape(*frame.shape[:2], *gain.shape[2:]), np.float32)


def _luma(picture: Picture) -> npt.NDArray[np.intp]:
    return (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) // (256 // _LUMA_LEVELS)).astype(np.intp).ravel()


def _colour(picture: Picture) -> npt.NDArray[np.intp]:
    red, green, blue = np.moveaxis((picture // (256 // _LEVELS)).astype(np.intp), 2, 0)
    return ((red * _LEVELS + green) * _LEVELS + blue).ravel()
