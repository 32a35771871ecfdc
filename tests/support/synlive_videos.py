"""Tiny videos made with PyAV, and folders to build sets from."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size

RATE = 30
SIZE = Size(192, 256)


def moving_frames(count: int, size: Size = SIZE, *, seed: int = 0, step_px: int = 2) -> list[np.ndarray]:
    """A textured picture that slides to the left by ``step_px`` a frame, (H, W, 3) uint8 RGB."""
    wide = Size(size.height, size.width + count * step_px)
    picture = cv2.GaussianBlur(synthetic_photograph(wide, seed=seed), (0, 0), 0.8)
    return [np.ascontiguousarray(picture[:, n * step_px : n * step_px + size.width]) for n in range(count)]


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    rotation: float | None = None,
    pixel_format: str = "yuv420p",
    matrix: int = 1,
    full_range: bool = False,
    transfer: int | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write 8-bit RGB frames; ``times`` are in thirtieths of a second; ``matrix`` and ``transfer`` as in H.273."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options or {"crf": "10", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full_range else 1
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=pixel_format, dst_colorspace=matrix, dst_color_range=2 if full_range else 1
            )
            frame.pts = times[number] if times is not None else number
            frame.time_base = Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
