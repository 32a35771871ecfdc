"""Optical flow without an engine: OpenCV's Dense Inverse Search (DIS).

The ``--flow dis`` choice: a fraction of RAFT's time and memory. The paper's table 9 shows that the restoration network
tolerates other flow estimators. OpenCV divides the image into a fixed number of stripes, so the flow does not depend on
the number of threads.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from livemoments.errors import UsageError
from livemoments.runtime.resize import FloatArray

DisPreset: TypeAlias = Literal["ultrafast", "fast", "medium"]

# Below this, OpenCV finds no scale for its coarsest level and raises an assertion.
_LEAST_SIDE_PX = 12


def dis_flow(image1: npt.NDArray[Any], image2: npt.NDArray[Any], preset: DisPreset = "medium") -> FloatArray:
    """Estimate the flow ``image1 -> image2`` on their grey values in 8 bits.

    The content at (y, x) of the first image is found at (y + flow_y, x + flow_x) of the second.

    Args:
        image1: (H, W, 3) RGB, or a batch (B, H, W, 3); uint8, or float32 in [0, 1] (values outside are clipped).
        image2: of the same shape.
        preset: DIS's trade of speed for accuracy.

    Returns:
        (H, W, 2) or (B, H, W, 2) float32, x then y displacement in pixels.

    Raises:
        UsageError: the shapes differ or are not RGB images, a side is shorter than 12 pixels, the type is neither
            uint8 nor float32, or the preset is unknown.
    """
    if preset not in get_args(DisPreset):
        raise UsageError(f"'{preset}' is not a DIS preset", fix=f"use one of {', '.join(get_args(DisPreset))}")
    if image1.shape != image2.shape or image1.ndim not in (3, 4) or image1.shape[-1] != 3:
        raise UsageError(f"flow needs two RGB images of one size, not {image1.shape} and {image2.shape}")
    height, width = image1.shape[-3:-1]
    if min(height, width) < _LEAST_SIDE_PX:
        raise UsageError(f"DIS flow needs images of at least {_LEAST_SIDE_PX} pixels a side, not {width}x{height}")
    if image1.ndim == 4:
        flows = [_flow(_grey(first), _grey(second), preset) for first, second in zip(image1, image2, strict=True)]
        return np.stack(flows) if flows else np.empty((0, height, width, 2), np.float32)
    return _flow(_grey(image1), _grey(image2), preset)


def _grey(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    import cv2

    if image.dtype == np.float32:
        image = np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise UsageError(f"DIS flow needs uint8 or float32 images, not {image.dtype}")
    grey: npt.NDArray[np.uint8] = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return grey


def _flow(grey1: npt.NDArray[np.uint8], grey2: npt.NDArray[np.uint8], preset: DisPreset) -> FloatArray:
    import cv2

    code = {
        "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
        "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
        "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
    }[preset]
    # A new estimator for every pair: a used one may start from what it found before.
    flow: FloatArray = cv2.DISOpticalFlow_create(code).calc(grey1, grey2, None)
    return flow
