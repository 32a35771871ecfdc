"""Optical flow without an engine: OpenCV's Dense Inverse Search (DIS).

The ``--flow dis`` choice, and what checkpoints without RAFT use: a fraction of RAFT's time and memory. The paper's
table 9 shows that the restoration network tolerates other flow estimators. The flow was the same bit for bit with 1, 2
and 4 threads (OpenCV 5.0, every preset).
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from livemoments.errors import UsageError

FloatArray: TypeAlias = npt.NDArray[np.float32]
DisPreset: TypeAlias = Literal["ultrafast", "fast", "medium"]

# OpenCV 5.0 chooses the number of scales by the width alone: on wide images less than 32 pixels high it ends in an
# assertion, in NaN or in a segmentation fault. Smaller images are padded; 64 leaves a margin of one scale.
_LEAST_SIDE_PX = 64


def dis_flow(image1: npt.NDArray[Any], image2: npt.NDArray[Any], preset: DisPreset = "medium") -> FloatArray:
    """Estimate the flow ``image1 -> image2`` on their grey values in 8 bits.

    The content at (y, x) of the first image is found at (y + flow_y, x + flow_x) of the second.

    Args:
        image1: (H, W, 3) RGB, or a batch (B, H, W, 3); uint8, or float32 in [0, 1] (values outside are clipped).
        image2: the second image, of the same shape.
        preset: DIS's trade of speed for accuracy.

    Returns:
        (H, W, 2) or (B, H, W, 2) float32, x then y displacement in pixels.

    Raises:
        UsageError: the shapes differ or are not RGB images of a pixel or more, the type is neither uint8 nor float32,
            or the preset is unknown.
    """
    if preset not in get_args(DisPreset):
        raise UsageError(f"'{preset}' is not a DIS preset", fix=f"use one of {', '.join(get_args(DisPreset))}")
    if image1.shape != image2.shape or image1.ndim not in (3, 4) or image1.shape[-1] != 3:
        raise UsageError(f"flow needs two RGB images of one size, not {image1.shape} and {image2.shape}")
    if image1.size == 0:
        raise UsageError(f"flow needs images of at least one pixel, not {image1.shape}")
    if image1.ndim == 4:
        pairs = zip(image1, image2, strict=True)
        return np.stack([_flow(_grey(first), _grey(second), preset) for first, second in pairs])
    return _flow(_grey(image1), _grey(image2), preset)


def dis_flow_between(image1: FloatArray, image2: FloatArray) -> FloatArray:
    """:func:`dis_flow` for images as the networks take them.

    Runtime and reference both call this: equal images have equal flow, bit for bit. Images that differ by the last bit
    of a float need not: grey values in 8 bits then differ at a few pixels, and around them the flow.

    Args:
        image1: (B, 3, H, W) float32 in [-1, 1].
        image2: the second image, of the same shape.

    Returns:
        (B, 2, H, W) float32, x then y displacement in pixels.

    Raises:
        UsageError: as for :func:`dis_flow`.
    """
    flow = dis_flow(_unit_hwc(image1), _unit_hwc(image2))
    return np.ascontiguousarray(flow.transpose(0, 3, 1, 2))


def _unit_hwc(images: FloatArray) -> FloatArray:
    return np.ascontiguousarray((images * 0.5 + 0.5).transpose(0, 2, 3, 1), dtype=np.float32)


def _grey(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    import cv2

    if image.dtype == np.float32:
        image = np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UsageError(f"DIS flow needs uint8 or float32 images, not {image.dtype}")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.uint8)


def _flow(grey1: npt.NDArray[np.uint8], grey2: npt.NDArray[np.uint8], preset: DisPreset) -> FloatArray:
    import cv2

    code = {
        "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
        "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
        "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
    }[preset]
    height, width = grey1.shape
    missing = ((0, max(_LEAST_SIDE_PX - height, 0)), (0, max(_LEAST_SIDE_PX - width, 0)))
    if missing != ((0, 0), (0, 0)):
        grey1, grey2 = np.pad(grey1, missing, mode="edge"), np.pad(grey2, missing, mode="edge")
    # A new estimator for every pair: a used one may start from what it found before.
    flow: FloatArray = cv2.DISOpticalFlow.create(code).calc(grey1, grey2, None)  # type: ignore[call-overload]
    return np.ascontiguousarray(flow[:height, :width])
