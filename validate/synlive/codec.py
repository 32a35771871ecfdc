"""The degradation of a phone's video codec: frames through HEVC at a phone's bit rate and back.

x265 with one pool and one frame thread gives the same bits every time (by default it need not).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from livemoments.errors import EngineError, UsageError
from livemoments.runtime.video.yuv import Coding, Matrix, frame_to_rgb, from_rgb

BITS_PER_PIXEL = (0.14, 0.21)
"""Of phones' clips: 6.5 to 8.5 Mb/s at 1440x1080 (Samsung), 15 Mb/s at 1920x1440 (iPhone 15), both at 30 a second."""
LEAD_FRAMES, TAIL_FRAMES = 8, 2
"""Coded before and after a pair, so that it does not begin with the clip's intra frame."""
X265_PARAMS = "pools=1:frame-threads=1:log-level=none"
# A bit rate is found by the quality: x265's own rate control overshoots by up to the double in clips as short as these.
_FIRST_CRF, _CRF_RANGE, _CRF_PER_OCTAVE = 26.0, (12.0, 45.0), 4.2
_RATE_TOLERANCE_OCTAVES, _RATE_TRIES = 0.1, 5
_LEAST_CODED_PX = 64
"""Of a side; smaller frames are coded with their edges repeated: x265 writes past its memory for some of them (48x48),
which ends the process."""
_MATRIX_TAGS: dict[Matrix, int] = {"bt601": 6, "bt709": 1, "bt2020": 9}  # ITU-T H.273
_FULL_RANGE, _LIMITED_RANGE = 2, 1

Pixels = npt.NDArray[np.uint8]


class Codec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="model", tag="hevc"):
    """Parameters of the codec.

    Attributes:
        scale: the frames are made this much smaller first (area).
        bits_per_pixel: over the clip, to a tenth; pictures that are simple enough need less.
        matrix: of the coded planes; phones use BT.601's.
        full_range: of the coded planes.
        preset: x265's.
    """

    scale: int
    bits_per_pixel: float
    matrix: Matrix = "bt601"
    full_range: bool = True
    preset: str = "fast"


def sample_codec(rng: np.random.Generator, *, scale: int = 2) -> Codec:
    """Draw the parameters for one clip."""
    return Codec(scale=scale, bits_per_pixel=float(rng.uniform(*BITS_PER_PIXEL)))


def through_codec(
    parameters: Codec, frames: Sequence[Pixels], *, rate: Fraction = Fraction(30)
) -> tuple[list[Pixels], float]:
    """Make frames smaller, encode them as one HEVC clip, decode it.

    Args:
        parameters: of the codec.
        frames: (H, W, 3) uint8 RGB of one size, whose sides are multiples of twice the scale, in order.
        rate: frames a second.

    Returns:
        The frames, (H / scale, W / scale, 3) uint8 RGB, and the bits per pixel that were spent.

    Raises:
        UsageError: the sides do not fit.
        EngineError: x265 failed or is not in this PyAV.
        ModuleNotFoundError: PyAV is not installed.
    """
    height, width = frames[0].shape[:2]
    if height % (2 * parameters.scale) or width % (2 * parameters.scale):
        raise UsageError(
            f"{width}x{height} pixels cannot be coded at 1/{parameters.scale}",
            fix=f"use sides that are multiples of {2 * parameters.scale}",
        )
    size = (width // parameters.scale, height // parameters.scale)
    small = [_extended(cv2.resize(frame, size, interpolation=cv2.INTER_AREA)) for frame in frames]
    pixels = len(frames) * small[0][..., 0].size
    crf = _FIRST_CRF
    for _ in range(_RATE_TRIES):
        data, coded_bits = _encode(parameters, small, rate, crf)
        octaves = math.log2(coded_bits / pixels / parameters.bits_per_pixel)
        better = min(max(crf + octaves * _CRF_PER_OCTAVE, _CRF_RANGE[0]), _CRF_RANGE[1])
        if abs(octaves) <= _RATE_TOLERANCE_OCTAVES or better == crf:
            break
        crf = better
    decoded = _decode(data)
    if len(decoded) != len(frames):
        raise EngineError(f"HEVC gave {len(decoded)} frames back for {len(frames)}", fix="update PyAV")
    return [np.ascontiguousarray(frame[: size[1], : size[0]]) for frame in decoded], coded_bits / pixels


def _extended(frame: npt.NDArray[Any]) -> Pixels:
    height, width = frame.shape[:2]
    below, right = (max(0, _LEAST_CODED_PX - length) for length in (height, width))
    return np.asarray(cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)


def _encode(parameters: Codec, frames: Sequence[Pixels], rate: Fraction, crf: float) -> tuple[bytes, int]:
    import av

    coding = Coding(parameters.matrix, parameters.full_range)
    height, width = frames[0].shape[:2]
    buffer = io.BytesIO()
    bits = 0
    try:
        with av.open(buffer, "w", format="mp4") as container:
            options = {"preset": parameters.preset, "x265-params": X265_PARAMS, "crf": f"{crf:.3f}"}
            stream: Any = container.add_stream("libx265", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.colorspace = _MATRIX_TAGS[parameters.matrix]
            context.color_range = _FULL_RANGE if parameters.full_range else _LIMITED_RANGE
            for number, pixels in enumerate(frames):
                frame = _frame(pixels, coding)
                frame.pts, frame.time_base = number, 1 / rate
                for packet in stream.encode(frame):
                    bits += 8 * packet.size
                    container.mux(packet)
            for packet in stream.encode():
                bits += 8 * packet.size
                container.mux(packet)
    except av.FFmpegError as error:
        raise EngineError(f"HEVC encoding failed ({error})", fix="install PyAV from PyPI, which has x265") from None
    return buffer.getvalue(), bits


def _frame(pixels: Pixels, coding: Coding) -> Any:
    import av

    stacked = np.concatenate([plane.reshape(-1) for plane in from_rgb(pixels, coding)])
    frame = av.VideoFrame.from_ndarray(stacked.reshape(-1, pixels.shape[1]), format="yuv420p")
    frame.colorspace = _MATRIX_TAGS[coding.matrix]
    frame.color_range = _FULL_RANGE if coding.full_range else _LIMITED_RANGE
    return frame


def _decode(data: bytes) -> list[Pixels]:
    import av

    with av.open(io.BytesIO(data), "r") as container:
        return [frame_to_rgb(frame) for frame in container.decode(video=0)]
