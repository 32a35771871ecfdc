"""Random pictures with a photograph's spectrum, where no photograph is at hand."""

from __future__ import annotations

import numpy as np

from livemoments.types import Size

FLOW_STD_PX = 4.0
"""Standard deviation of made-up flows, pixels: a hand-held camera's motion between two frames of a clip."""


def natural_image(rng: np.random.Generator, batch: int, channels: int, size: Size) -> np.ndarray:
    """Images whose amplitude falls as 1/f, as photographs' does: (batch, channels, H, W), standard deviation 1."""
    rows = np.fft.fftfreq(size.height)[:, None]
    columns = np.fft.rfftfreq(size.width)[None]
    frequency = np.sqrt(rows**2 + columns**2)
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(rng.standard_normal((batch, channels, size.height, size.width)))
    image = np.fft.irfft2(noise / frequency, s=(size.height, size.width))
    return (image / image.std(axis=(1, 2, 3), keepdims=True)).astype(np.float32)
