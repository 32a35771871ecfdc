"""What speaks for a frame: how sharp it is, how much moves in it, how far the scene is from the photo's instant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.progress import SILENT, Progress
from livemoments.runtime.live_photo.clip import LiveClip

_FLOW_PX = 256
"""Longest side at which motion is estimated."""
_GREY_SIGMA = 0.8  # below the compression's blocks, above its ringing


@dataclass(frozen=True, slots=True)
class FrameScore:
    """One frame.

    Attributes:
        index: its number, from 0.
        time_s: when it is shown.
        sharpness: energy of fine detail, 1 for the sharpest frame of the clip.
        motion_px: how far the picture moved since the frame before, the mean over it, in video pixels.
        distance_px: how far it is from the frame at the photo's instant, likewise.
        from_key_s: its time less the photo's.
        is_key: whether it is the frame at the photo's instant.
    """

    index: int
    time_s: float
    sharpness: float
    motion_px: float
    distance_px: float
    from_key_s: float
    is_key: bool

    def to_json(self) -> dict[str, Any]:
        """JSON-able, rounded to what the numbers are good for."""
        digits = {"time_s": 4, "sharpness": 3, "motion_px": 2, "distance_px": 2, "from_key_s": 4}
        return {name: round(value, digits[name]) if name in digits else value for name, value in asdict(self).items()}


def score_frames(
    clip: LiveClip,
    key_index: int,
    *,
    keep: Callable[[int, npt.NDArray[np.uint8]], None] | None = None,
    progress: Progress = SILENT,
) -> tuple[FrameScore, ...]:
    """Go through the clip once.

    Args:
        clip: the video.
        key_index: the frame at the photo's instant.
        keep: called with every frame's number and pixels, for thumbnails.
        progress: where to report.

    Raises:
        FileError: a frame is damaged or missing.
    """
    reduce = min(1.0, _FLOW_PX / max(clip.size.height, clip.size.width))
    key = _small(next(clip.frames(key_index, key_index)), reduce)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    energies, motions, distances = [], [], []
    before = None
    with progress.task("Reading the clip", len(clip.times_s)) as task:
        for index, pixels in enumerate(_all(clip)):
            energies.append(_detail(pixels))
            small = _small(pixels, reduce)
            motions.append(0.0 if before is None else _moved(flow, before, small) / reduce)
            distances.append(0.0 if index == key_index else _moved(flow, key, small) / reduce)
            before = small
            if keep is not None:
                keep(index, pixels)
            task.advance(1)
    top = max(energies) or 1.0
    key_s = clip.times_s[key_index]
    return tuple(
        FrameScore(
            index, time_s, energies[index] / top, motions[index], distances[index], time_s - key_s, index == key_index
        )
        for index, time_s in enumerate(clip.times_s)
    )


def best_frame(scores: tuple[FrameScore, ...]) -> FrameScore:
    """The sharpest frame; of equals the one nearest to the photo's instant."""
    return max(scores, key=lambda score: (round(score.sharpness, 3), -abs(score.from_key_s)))


def _all(clip: LiveClip) -> Iterator[npt.NDArray[np.uint8]]:
    yield from clip.frames()


def _detail(pixels: npt.NDArray[np.uint8]) -> float:
    """Mean square of the Laplacian of slightly blurred luma: motion blur and defocus take it away."""
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), _GREY_SIGMA)
    return float(np.mean(np.square(cv2.Laplacian(grey, cv2.CV_32F))))


def _small(pixels: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    size = (max(16, round(pixels.shape[1] * scale)), max(16, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def _moved(flow: Any, first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    field = flow.calc(first, second, None)
    return float(np.mean(np.hypot(field[..., 0], field[..., 1])))
