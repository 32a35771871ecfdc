"""Between RGB and the planes of a video: matrix, range, bit depth and chroma, in float32.

swscale's own conversion depends on its flags and the processor; this one has no choices but those named here. Chroma
lies where H.264 and HEVC put it by default: on the left luma column, halfway between rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from livemoments.errors import LiveMomentsError, UsageError
from livemoments.runtime.image_files.colour_codes import display_p3
from livemoments.runtime.video.hdr import HDR_CURVES, hdr_to_p3, wide_to_p3

Matrix: TypeAlias = Literal["bt601", "bt709", "bt2020"]
Planes: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
Pixels: TypeAlias = npt.NDArray[np.uint8]

_WEIGHTS: dict[str, tuple[float, float]] = {  # of red and blue in luma
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}
_FORMAT = re.compile(r"yuvj?(420|422|444)p(?:(9|10|12|14|16)le)?")
# AVColorSpace of ITU-T H.273
_MATRICES: dict[int, Matrix] = {1: "bt709", 4: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020"}
_UNSPECIFIED = 2
_FULL_RANGE = 2  # AVColorRange
_HD_WIDTH_PX, _HD_HEIGHT_PX = 1280, 577  # players take untagged videos from here on for BT.709
_P3_PRIMARIES, _BT2020_PRIMARIES = 12, 9  # AVColorPrimaries of H.273


class UnusableFrameError(LiveMomentsError):
    """A frame whose colours cannot be converted."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How planes hold colours.

    Attributes:
        matrix: which luma.
        full_range: 0 to 255 (times ``2^(depth - 8)``), not 16 to 235.
        depth: bits.
        shrink: chroma's horizontal and vertical subsampling.
    """

    matrix: Matrix
    full_range: bool
    depth: int = 8
    shrink: tuple[int, int] = (2, 2)


def to_rgb(planes: Planes, coding: Coding) -> Pixels:
    """Planes to (H, W, 3) uint8 RGB; chroma is interpolated linearly.

    Args:
        planes: Y (H, W), Cb and Cr (H / shrink_y, W / shrink_x), uint8 or uint16.
        coding: what they mean.
    """
    rgb = _to_float_rgb(planes, coding)
    return np.clip(np.rint(rgb, out=rgb), 0, 255).astype(np.uint8)


def _to_float_rgb(planes: Planes, coding: Coding) -> npt.NDArray[np.float32]:
    """(H, W, 3) float32 RGB, 0 to 255 with overshoots."""
    unit = 2.0 ** (8 - coding.depth)
    luma = planes[0].astype(np.float32) * np.float32(unit)
    height, width = luma.shape
    cb, cr = (
        _enlarge(plane.astype(np.float32) * np.float32(unit) - 128, coding, height, width) for plane in planes[1:]
    )
    if coding.full_range:
        chroma_gain = 1.0
    else:
        luma = (luma - 16) * np.float32(255 / 219)
        chroma_gain = 255 / 224
    red, blue = _WEIGHTS[coding.matrix]
    green = 1 - red - blue
    rgb = np.empty((height, width, 3), np.float32)
    rgb[..., 0] = luma + np.float32(2 * (1 - red) * chroma_gain) * cr
    rgb[..., 2] = luma + np.float32(2 * (1 - blue) * chroma_gain) * cb
    rgb[..., 1] = (luma - np.float32(red) * rgb[..., 0] - np.float32(blue) * rgb[..., 2]) / np.float32(green)
    return rgb


def from_rgb(pixels: Pixels, coding: Coding) -> Planes:
    """(H, W, 3) uint8 RGB to 8-bit 4:2:0 planes; chroma is averaged around its place.

    Raises:
        UsageError: a side is odd, or the coding is not 8-bit 4:2:0.
    """
    height, width = pixels.shape[:2]
    if height % 2 or width % 2 or coding.depth != 8 or coding.shrink != (2, 2):
        raise UsageError(f"{width}x{height} pixels cannot be coded as 8-bit 4:2:0", fix="use even sides")
    red, blue = _WEIGHTS[coding.matrix]
    rgb = pixels.astype(np.float32)
    luma = np.float32(red) * rgb[..., 0] + np.float32(1 - red - blue) * rgb[..., 1] + np.float32(blue) * rgb[..., 2]
    cb = (rgb[..., 2] - luma) / np.float32(2 * (1 - blue))
    cr = (rgb[..., 0] - luma) / np.float32(2 * (1 - red))
    if not coding.full_range:
        luma = luma * np.float32(219 / 255) + 16
        cb, cr = cb * np.float32(224 / 255), cr * np.float32(224 / 255)
    return _to_bytes(luma), _to_bytes(_halve(cb) + 128), _to_bytes(_halve(cr) + 128)


def _to_bytes(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8)


def _enlarge(plane: npt.NDArray[np.float32], coding: Coding, height: int, width: int) -> npt.NDArray[np.float32]:
    across, down = coding.shrink
    if (across, down) == (1, 1):
        return plane
    # chroma column i lies on luma column across * i; chroma row j in the middle of its luma rows
    back = np.array([[1 / across, 0, 0], [0, 1 / down, (1 / down - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(plane, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE))


def _halve(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Half the size: 1 2 1 around even columns, the mean of two rows."""
    rows = (plane[::2] + plane[1::2]) / 2
    padded = np.pad(rows, ((0, 0), (1, 1)), mode="edge")
    return np.asarray((padded[:, 0:-2:2] + 2 * padded[:, 1:-1:2] + padded[:, 2::2]) / 4)


def frame_to_rgb(frame: Any) -> Pixels:
    """A decoded ``av.VideoFrame`` to (H, W, 3) uint8 RGB, turned as its display matrix says.

    Untagged colours are taken for BT.709 from 720p on, for BT.601 below; an untagged range for the limited one. The
    transfer curve and primaries are left as they are (a video's BT.709 is shown as sRGB).

    Raises:
        UnusableFrameError: the frame is HDR (PQ or HLG), or its pixel format or matrix is none that can be converted.
    """
    if frame.color_trc in HDR_CURVES:
        fix = "convert the video to SDR first, or set the camera to SDR"
        raise UnusableFrameError(f"is HDR ({HDR_CURVES[frame.color_trc]})", fix=fix)
    if frame.format.is_rgb:
        pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    else:
        pixels = to_rgb(_planes(frame), _coding(frame))
    return np.ascontiguousarray(_turn(pixels, frame))


def frame_to_photo_range(frame: Any) -> tuple[Pixels, bytes | None, str | None]:
    """The same for frames of any dynamic range and primaries, brought to one that photos have.

    HDR (PQ, HLG, the base layer of Dolby Vision) is tone-mapped to Display P3, as wide SDR is converted to it.

    Returns:
        The pixels, their ICC profile (``None``: sRGB), and what was done to them in words, if anything was.

    Raises:
        UnusableFrameError: its pixel format or matrix is none that can be converted.
    """
    is_hdr = frame.color_trc in HDR_CURVES
    primaries = getattr(frame, "color_primaries", _UNSPECIFIED)
    if frame.format.is_rgb or not (is_hdr or primaries == _BT2020_PRIMARIES):
        profile = display_p3() if primaries == _P3_PRIMARIES else None
        return frame_to_rgb(frame), profile, None
    signal = _to_float_rgb(_planes(frame), _coding(frame))
    signal *= np.float32(1 / 255)
    if is_hdr:
        dolby = any("DOVI" in str(data.type) for data in frame.side_data)
        name = f"{HDR_CURVES[frame.color_trc]}{', the base layer of Dolby Vision' if dolby else ''}"
        pixels, done = hdr_to_p3(signal, frame.color_trc), f"HDR ({name}), tone-mapped to Display P3"
    else:
        pixels, done = wide_to_p3(signal), "BT.2020 primaries, converted to Display P3"
    return np.ascontiguousarray(_turn(pixels, frame)), display_p3(), done


def _coding(frame: Any) -> Coding:
    match = _FORMAT.fullmatch(frame.format.name)
    if match is None:
        raise UnusableFrameError(f"has the pixel format {frame.format.name}", fix="convert it to yuv420p")
    matrix = _MATRICES.get(frame.colorspace)
    if matrix is None:
        if frame.colorspace != _UNSPECIFIED:
            raise UnusableFrameError(f"has the colour matrix {frame.colorspace}", fix="convert it to BT.709")
        matrix = "bt709" if frame.width >= _HD_WIDTH_PX or frame.height >= _HD_HEIGHT_PX else "bt601"
    shrink = {"420": (2, 2), "422": (2, 1), "444": (1, 1)}[match[1]]
    is_full = frame.color_range == _FULL_RANGE or frame.format.name.startswith("yuvj")
    return Coding(matrix, is_full, int(match[2] or 8), shrink)


def _planes(frame: Any) -> Planes:
    _coding(frame)  # refuses formats whose planes would mean something else
    planes = []
    for plane in frame.planes:
        kind = np.dtype("<u2") if frame.format.components[0].bits > 8 else np.dtype(np.uint8)
        rows = np.frombuffer(plane, kind).reshape(plane.height, plane.line_size // kind.itemsize)
        planes.append(rows[:, : plane.width])
    y, cb, cr = planes
    return y, cb, cr


def _turn(pixels: Pixels, frame: Any) -> Pixels:
    """Apply the display matrix ``x' = a x + c y, y' = b x + d y`` where it is a quarter turn or a mirror image."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    values = np.sign(np.frombuffer(bytes(data), np.int32)[[0, 1, 3, 4]].astype(np.int64))
    a, b, c, d = (int(value) for value in values)
    if a == d == 0:
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    elif b or c:
        raise UnusableFrameError("is turned by an angle that is no multiple of 90 degrees", fix="turn it upright first")
    if a < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if d < 0 else pixels
