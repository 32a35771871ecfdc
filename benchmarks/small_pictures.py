"""The pictures of `small_quality.py`: a sheet of crops, and the chart of gain against time. Not a benchmark itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.runtime.restore import restore
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS

CROP_PX, ZOOM, GAP_PX, CAPTION_PX, FONT_PX = 96, 3, 8, 30, 17
LABEL_PLACES = [(x, sign * y) for y in (6, 20, 34, 48, 62, 76, 90) for x in (6, -40) for sign in (1, -1.6)]
"""In points from a mark: the first that is free is a label's."""
COLUMNS = ("the video frame, upscaled", "restored", "the truth", "the key photo, same place")


def draw_sheet(dataset: Path, names: Sequence[str], bundle: Path, path: Path) -> None:
    """A row of crops for each image, where the truth has the most detail (which is no choice of ours)."""
    side = CROP_PX * ZOOM + GAP_PX
    canvas = Image.new("RGB", (len(COLUMNS) * side + GAP_PX, CAPTION_PX + len(names) * side), (250, 250, 250))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT_PX)
    for column, caption in enumerate(COLUMNS):
        draw.text((GAP_PX + column * side, (CAPTION_PX - FONT_PX) // 2), caption, (32, 32, 36), font)
    for row, name in enumerate(names):
        restored = restore(bundle, *(dataset / part / name for part in (FRAMES, PHOTOS, PHOTO_FRAMES))).image
        frame, truth, photo = (read_photo(dataset / part / name).pixels for part in (FRAMES, TRUTHS, PHOTOS))
        upscaled = cv2.resize(frame, truth.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        y, x = most_detailed(truth)
        for column, picture in enumerate((upscaled, restored, truth, photo)):
            crop = Image.fromarray(np.ascontiguousarray(picture[y : y + CROP_PX, x : x + CROP_PX]))
            crop = crop.resize((CROP_PX * ZOOM, CROP_PX * ZOOM), Image.Resampling.NEAREST)
            canvas.paste(crop, (GAP_PX + column * side, CAPTION_PX + row * side))
    write_image(path, np.asarray(canvas), quality=90)


def most_detailed(picture: np.ndarray) -> tuple[int, int]:
    """The corner of the crop in which neighbours differ most."""
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = cv2.boxFilter(cv2.Laplacian(luma, cv2.CV_32F) ** 2, -1, (CROP_PX, CROP_PX), anchor=(0, 0))
    inside = detail[: luma.shape[0] - CROP_PX + 1, : luma.shape[1] - CROP_PX + 1]
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(y), int(x)


def draw_chart(series: Mapping[str, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """Gain in dB against time, a mark for every row of every series; all series begin with the same row."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for (label, points), marker in zip(series.items(), "os^", strict=True):
        line = "-" if marker == "o" else ""  # only the steps are on one scale
        axes.plot(*zip(*points.values(), strict=True), marker + line, linewidth=0.8, label=label)
    axes.margins(0.15)
    axes.set_xlabel("time of a tile, fp32 with six steps = 1")
    axes.set_ylabel("PSNR (y) above the upscaled frame, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.draw_without_rendering()  # lays out, so that labels know where they are
    taken: list[Any] = []
    for name, point in {name: point for points in series.values() for name, point in points.items()}.items():
        for offset in LABEL_PLACES:
            label = axes.annotate(name, point, xytext=offset, textcoords="offset points", fontsize=8)
            box = label.get_window_extent()
            label.remove()
            if not any(box.overlaps(other) for other in taken):
                break
        label = axes.annotate(
            name,
            point,
            xytext=offset,
            textcoords="offset points",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.4},
        )
        taken.append(label.get_window_extent())
    figure.savefig(path, dpi=130)
