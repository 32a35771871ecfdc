"""The picture of a sensitivity report: a heat map of layers and steps, as a self-contained SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from livemoments.quantize.search.sensitivity_report import LayerSensitivity, Sensitivity

_RAMP = ("#fdf6e9", "#fcd9a6", "#f9a86f", "#ee6c5f", "#c43a73", "#862a80", "#3f1d6b", "#150e38")
"""From harmless to harmful; even steps of lightness, so that it survives greyscale print and colour blindness."""
_RAMP_RGB = np.array([tuple(bytes.fromhex(colour[1:])) for colour in _RAMP]).T
_INK, _QUIET, _PAPER, _EMPTY = "#1d1d27", "#6b6b7b", "#ffffff", "#f3f3f6"
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"

_ROW_PX = 20
_STEP_PX = 7
_BLOCK_GAP_PX = 4
_LABEL_PX = 176
_MARGIN_PX = 28
_HEAD_PX = 74
_PANEL_HEAD_PX = 30
_PANEL_FOOT_PX = 34
_PANEL_GAP_PX = 36
_BAR_PX, _BAR_HEIGHT_PX = 180, 10
_SQNR_SPAN_DB = 60
_PHOTO_SPAN_DB = 45
"""What lies further above the worst layer is equally harmless."""
_OUTLIER_SHARE = 0.03
"""Of the cells: so many may be worse than the darkest colour, or one bad layer makes all others look alike."""
_OUTSIDE = -1
"""The column of linears outside of the blocks."""

Cells = Callable[[LayerSensitivity], Sequence[float]]


def draw_sensitivity(report: Sensitivity) -> str:
    """Draw a report.

    One row per kind of linear, one column per transformer block; on the left the SQNR of the stage's output, with the
    sampling steps side by side within a block, on the right the PSNR of the photo. A cell's tooltip has its numbers.

    Returns:
        An SVG document without scripts, fonts or links.
    """
    stages = list(dict.fromkeys(layer.linear.stage for layer in report.layers))
    steps = len(report.timesteps)
    sqnr = _Scale([value for layer in report.layers for value in layer.sqnr_db], _SQNR_SPAN_DB)
    photo = _Scale([value for layer in report.layers for value in _photo_cells(layer)], _PHOTO_SPAN_DB)
    body: list[str] = []
    y, right = _HEAD_PX, 0
    panels = []
    for stage in stages:
        layers = [layer for layer in report.layers if layer.linear.stage == stage]
        left = _Panel(layers, lambda layer: layer.sqnr_db, sqnr, steps, f"{stage}: noise at its output, step by step")
        by_step = any(layer.step_photo_psnr_db for layer in layers)
        title = f"{stage}: the photo" + (", if quantized at that step only" if by_step else "")
        other = _Panel(layers, _photo_cells, photo, steps if by_step else 3, title, labels=False)
        panels.append((left, other))
    second = _MARGIN_PX + max(left.width for left, _ in panels) + _PANEL_GAP_PX
    for left, other in panels:
        body.append(left.draw(_MARGIN_PX, y))
        body.append(other.draw(second, y))
        right = max(right, second + other.width)
        y += left.height
    width = max(right, _MARGIN_PX + 2 * (_BAR_PX + 150)) + _MARGIN_PX
    height = y + 46
    actions = ", ".join(dict.fromkeys(layer.action.value for layer in report.layers))
    title = f"Sensitivity to {actions}"
    first, last = report.timesteps[0], report.timesteps[-1]
    note = (
        f"recipe {report.recipe} · each layer quantized alone · {steps} steps, t = {first:.0f} to {last:.0f}, "
        "left to right within a block · dark is harmful"
    )
    bars = _bar("SQNR", sqnr, _MARGIN_PX, height - 40) + _bar(
        "photo PSNR", photo, _MARGIN_PX + _BAR_PX + 150, height - 40
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{_FONT}" font-size="11" fill="{_INK}">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="{_PAPER}"/>\n'
        + _text(_MARGIN_PX, 34, title, size=17, weight=600)
        + _text(_MARGIN_PX, 54, note, fill=_QUIET)
        + "".join(body)
        + bars
        + "</svg>\n"
    )


class _Scale:
    """Decibels to colours: from about the worst that was found to the best, or to ``span_db`` above it."""

    def __init__(self, values: Sequence[float], span_db: int) -> None:
        finite = sorted(value for value in values if math.isfinite(value)) or [0.0, 1.0]
        self.low = math.floor(finite[int(_OUTLIER_SHARE * len(finite))])
        best = math.ceil(finite[-1])
        self.is_clamped = finite[0] < self.low
        self.high = max(min(best, self.low + span_db), self.low + 1)
        self.is_cut = best > self.high

    def colour(self, value: float) -> str:
        harm = min(max((self.high - value) / (self.high - self.low), 0.0), 1.0)
        places = range(len(_RAMP))
        mixed = [np.interp(harm * places[-1], places, channel) for channel in _RAMP_RGB]
        return "#" + "".join(f"{round(value):02x}" for value in mixed)


class _Panel:
    """A grid of kinds and blocks for one stage; ``slots`` cells of ``_STEP_PX`` make a block's width."""

    def __init__(
        self,
        layers: Sequence[LayerSensitivity],
        cells: Cells,
        scale: _Scale,
        slots: int,
        title: str,
        *,
        labels: bool = True,
    ) -> None:
        self._layers, self._cells, self._scale, self._title = layers, cells, scale, title
        self._kinds = list(dict.fromkeys(layer.kind for layer in sorted(layers, key=_kind_order)))
        blocks = sorted({_OUTSIDE if layer.block is None else layer.block for layer in layers} - {_OUTSIDE})
        has_outside = any(layer.block is None for layer in layers)
        self._columns = [*blocks, *([_OUTSIDE] if has_outside else [])]
        self._slot_px = slots * _STEP_PX
        self._labels_px = _LABEL_PX if labels else 0
        self.width = self._labels_px + len(self._columns) * (self._slot_px + _BLOCK_GAP_PX)
        self.height = _PANEL_HEAD_PX + len(self._kinds) * _ROW_PX + _PANEL_FOOT_PX

    def draw(self, x: int, y: int) -> str:
        parts = [_text(x, y + 12, self._title, weight=600, size=12)]
        top, left = y + _PANEL_HEAD_PX, x + self._labels_px
        for row, kind in enumerate(self._kinds):
            if self._labels_px:
                parts.append(_text(left - 8, top + row * _ROW_PX + 13, kind, anchor="end"))
        filled = set()
        for layer in self._layers:
            row = self._kinds.index(layer.kind)
            column = self._columns.index(_OUTSIDE if layer.block is None else layer.block)
            filled.add((row, column))
            parts.append(self._draw_cells(layer, left + self._x(column), top + row * _ROW_PX))
        for row in range(len(self._kinds)):
            for column in range(len(self._columns)):
                if (row, column) not in filled:
                    parts.append(_rect(left + self._x(column), top + row * _ROW_PX, self._slot_px, _ROW_PX - 2, _EMPTY))
        bottom = top + len(self._kinds) * _ROW_PX + 12
        for column, block in enumerate(self._columns):
            name = "out" if block == _OUTSIDE else str(block)
            parts.append(_text(left + self._x(column) + self._slot_px / 2, bottom, name, anchor="middle", fill=_QUIET))
        if self._labels_px:
            parts.append(_text(left - 8, bottom, "block", anchor="end", fill=_QUIET))
        return "".join(parts)

    def _x(self, column: int) -> int:
        return column * (self._slot_px + _BLOCK_GAP_PX)

    def _draw_cells(self, layer: LayerSensitivity, x: int, y: int) -> str:
        values = self._cells(layer)
        width = self._slot_px / len(values)
        numbers = ", ".join(f"{value:.1f}" for value in values)
        tip = f"<title>{escape(f'{layer.linear}: {numbers} dB')}</title>"
        cells = (
            _rect(x + place * width, y, width, _ROW_PX - 2, self._scale.colour(value))
            for place, value in enumerate(values)
        )
        return f"<g>{tip}{''.join(cells)}</g>\n"


def _photo_cells(layer: LayerSensitivity) -> Sequence[float]:
    return layer.step_photo_psnr_db or (layer.photo_psnr_db,)


def _kind_order(layer: LayerSensitivity) -> tuple[bool, bool, str]:
    """Image side first, then text, then what lies outside of the blocks."""
    is_text = "context" in layer.kind or "add_" in layer.kind
    return layer.block is None, is_text, layer.kind


def _bar(name: str, scale: _Scale, x: int, y: int) -> str:
    """The legend of a scale: harmful at the left."""
    slices = len(_RAMP) * 6
    width = _BAR_PX / slices
    span = scale.high - scale.low
    parts = [
        _rect(x + i * width, y, width + 0.5, _BAR_HEIGHT_PX, scale.colour(scale.low + span * (i + 0.5) / slices))
        for i in range(slices)
    ]
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        mark = "≥ " if share == 1 and scale.is_cut else "≤ " if share == 0 and scale.is_clamped else ""
        label = f"{mark}{scale.low + span * share:.0f}"
        parts.append(_text(x + _BAR_PX * share, y + _BAR_HEIGHT_PX + 13, label, anchor=anchor, fill=_QUIET))
    return "".join([*parts, _text(x + _BAR_PX + 8, y + _BAR_HEIGHT_PX - 1, f"{name}, dB")])


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'


def _text(
    x: float, y: float, text: str, *, size: int = 11, weight: int = 400, anchor: str = "start", fill: str = _INK
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>\n'
