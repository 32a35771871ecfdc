"""Made-up inputs of a stage's graph, of the magnitude that the runtime feeds, where no photograph is at hand."""

from __future__ import annotations

import numpy as np

from livemoments.natural_images import FLOW_STD_PX, natural_image
from livemoments.types import Size, TensorSpec

FREE_SIZE = Size(128, 128)
"""What axes of pixels are by default that a graph leaves free: large enough for RAFT's four pyramid levels."""
IMAGE_STD = 0.5
_OTHER_STD = 0.3
"""Of what earlier stages give: keys, values, motion's bias."""
_INT8_SPAN = 64
"""Keys and values in int8: within half of their range, as most of the real ones."""


def draw_input(
    spec: TensorSpec, rng: np.random.Generator, *, batch: int = 1, size: Size = FREE_SIZE, point: int = 0
) -> np.ndarray:
    """A value for one input: images in [-1, 1], flows in pixels, latents of standard deviation 1, as float32.

    Args:
        spec: the input.
        rng: the source of the noise.
        batch: length of a free axis of tiles.
        size: lengths of free axes of pixels.
        point: what the int64 ``step`` is.
    """
    free = {"batch": batch, "height": size.height, "width": size.width}
    shape = tuple(free.get(axis, FREE_SIZE.height) if isinstance(axis, str) else axis for axis in spec.shape)
    if spec.dtype == "int64":
        return np.full(shape, point, np.int64)
    if spec.dtype == "int8":
        return rng.integers(-_INT8_SPAN, _INT8_SPAN, shape, np.int8, endpoint=True)
    if len(shape) != 4 or not spec.name.startswith(("image", "latent", "flow")):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(_OTHER_STD)
    drawn = natural_image(rng, shape[0], shape[1], Size(shape[2], shape[3]))
    if spec.name.startswith("image"):
        return np.clip(drawn * np.float32(IMAGE_STD), -1, 1)
    return drawn * np.float32(FLOW_STD_PX) if spec.name == "flow" else drawn
