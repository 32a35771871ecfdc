"""The before / after / reference picture: captioned panels, and one detail of each enlarged below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from livemoments.runtime.image_files.photo import write_image

_PANEL_WIDTH_PX = 400
_GAP_PX = 10
_CAPTION_PX = 40
_FONT_PX = 17
_BACKGROUND = (250, 250, 250)
_INK = (32, 32, 36)
_FRAME = (232, 96, 32)
DETAIL_FRACTION = 0.25
"""Side of the enlarged detail, as a fraction of the picture's."""


def write_comparison(
    path: Path,
    panels: Sequence[tuple[str, np.ndarray]],
    *,
    detail_at: tuple[float, float] = (0.5, 0.5),
    footer: str = "",
) -> None:
    """Write captioned pictures side by side, each with a detail of it below.

    Args:
        path: the picture's file.
        panels: captions and (H, W, 3) uint8 pictures, all of one shape.
        detail_at: centre of the detail, (y, x), as fractions of the height and width.
        footer: a line under everything.
    """
    height, width = panels[0][1].shape[:2]
    panel = (_PANEL_WIDTH_PX, round(_PANEL_WIDTH_PX * height / width))
    box = _detail_box(height, width, detail_at)
    footer_px = _CAPTION_PX if footer else 0
    canvas = Image.new(
        "RGB",
        (len(panels) * (panel[0] + _GAP_PX) + _GAP_PX, _CAPTION_PX + 2 * (panel[1] + _GAP_PX) + footer_px),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_PX)
    for number, (caption, pixels) in enumerate(panels):
        x = _GAP_PX + number * (panel[0] + _GAP_PX)
        picture = Image.fromarray(pixels)
        draw.text((x, (_CAPTION_PX - _FONT_PX) // 2), caption, _INK, font)
        canvas.paste(picture.resize(panel, Image.Resampling.LANCZOS), (x, _CAPTION_PX))
        zoom = panel[0] / width
        corners = [x + box[0] * zoom, _CAPTION_PX + box[1] * zoom, x + box[2] * zoom, _CAPTION_PX + box[3] * zoom]
        draw.rectangle(corners, outline=_FRAME, width=2)
        detail = picture.crop(box).resize(panel, Image.Resampling.NEAREST)
        canvas.paste(detail, (x, _CAPTION_PX + panel[1] + _GAP_PX))
    if footer:
        draw.text((_GAP_PX, canvas.height - _CAPTION_PX + (_CAPTION_PX - _FONT_PX) // 2), footer, _INK, font)
    write_image(path, np.asarray(canvas))


def _detail_box(height: int, width: int, at: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the detail, inside the picture."""
    tall, wide = round(height * DETAIL_FRACTION), round(width * DETAIL_FRACTION)
    top = min(max(round(at[0] * height - tall / 2), 0), height - tall)
    left = min(max(round(at[1] * width - wide / 2), 0), width - wide)
    return left, top, left + wide, top + tall
