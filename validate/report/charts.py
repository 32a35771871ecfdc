"""Charts of the HTML report: inline SVG, one small drawing a function.

Horizontal places are percentages and vertical ones pixels, so that a drawing fills whatever width it is given without
distorting its text and marks. Colours come from the page's style sheet by class. Every status has its own shape, not
only its own colour. A drawing inside a table's row repeats numbers that stand beside it and is hidden from screen
readers; one that stands alone carries a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from livemoments.validate.report.numbers import format_bytes, format_round
from livemoments.validate.report_data import Status

_TRACK_PX = 22
_AXIS_PX = 20
_BINS = 24
_HISTOGRAM_PX = 26


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to percent of the width: linear from ``low`` to ``high``, or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Percent of the width, 0 to 100; values outside stay at the edge."""
        if self.log:
            if value <= 0:
                return 0.0
            share = math.log10(value / self.low) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


def decades(values: Iterable[float | None]) -> Scale:
    """A logarithmic scale over whole powers of ten with all positive values inside, two decades at least."""
    logs = [math.log10(value) for value in values if value is not None and value > 0]
    low = math.ceil(min(logs, default=-6.0)) - 1
    high = math.floor(max(logs, default=0.0)) + 1
    if high - low < 2:
        high = low + 2
    return Scale(10.0**low, 10.0**high, log=True)


def from_zero(values: Iterable[float]) -> Scale:
    """A linear scale from 0 to a little past the largest value."""
    top = max(values, default=0.0)
    return Scale(0.0, top * 1.04 if top > 0 else 1.0)


def log_axis(scale: Scale) -> str:
    """The powers of ten above a column of :func:`error_track`."""
    low, high = round(math.log10(scale.low)), round(math.log10(scale.high))
    step = max(1, math.ceil((high - low) / 3))
    parts = []
    for power in range(low, high + 1, step):
        parts.append(_tick(scale.at(10.0**power), "1" if power == 0 else f"1e{power}"))
    return _svg("axis", _AXIS_PX, parts)


def error_track(value: float | None, limit: float | None, status: Status, scale: Scale) -> str:
    """One error on a logarithmic scale: a stem, a mark by status, the limit as a tick and what lies past it shaded.

    An error of 0 stands at the left edge; one that is not finite leaves the track to its limit.
    """
    middle = _TRACK_PX / 2
    low, high = round(math.log10(scale.low)), round(math.log10(scale.high))
    parts = []
    if limit is not None:
        x = scale.at(limit)
        parts.append(f'<rect class="past" x="{x}%" y="3" width="{round(100 - x, 2)}%" height="{_TRACK_PX - 6}"/>')
    parts += [_line("grid", scale.at(10.0**power), 0, _TRACK_PX) for power in range(low, high + 1)]
    if limit is not None:
        parts.append(_line("limit", scale.at(limit), 2, _TRACK_PX - 2))
    if value is not None:
        x = scale.at(value)
        parts.append(f'<line class="stem {status}" x1="0%" x2="{x}%" y1="{middle}" y2="{middle}"/>')
        parts.append(_mark(x, middle, status))
    return _svg("track", _TRACK_PX, parts)


def latency_track(p50_s: float, p90_s: float, p99_s: float, scale: Scale) -> str:
    """A bar up to p50, a whisker to p99 with a tick at p90."""
    middle = _TRACK_PX / 2
    half, ninety, top = (scale.at(value) for value in (p50_s, p90_s, p99_s))
    return _svg(
        "track",
        _TRACK_PX,
        [
            _bar(half),
            f'<line class="whisker" x1="{half}%" x2="{top}%" y1="{middle}" y2="{middle}"/>',
            _line("whisker", ninety, 7, _TRACK_PX - 7),
            _line("whisker", top, 4, _TRACK_PX - 4),
        ],
    )


def bar_track(value: float, scale: Scale) -> str:
    """A bar from the left edge."""
    return _svg("track", _TRACK_PX, [_bar(scale.at(value))])


def seconds_axis(scale: Scale) -> str:
    """0 and round times above a column of :func:`latency_track`."""
    step = _round_step(scale.high / 2.5)
    parts = [_tick(0, "0")]
    value = step
    while value <= scale.high * 0.97:
        parts.append(_tick(scale.at(value), format_round(value, "s")))
        value += step
    return _svg("axis", _AXIS_PX, parts)


def histogram(values: Sequence[float], mean: float) -> str:
    """How the images spread: bins over the range of the values, a line at the mean."""
    low, high = min(values), max(values)
    if high <= low:
        return _svg("track", _HISTOGRAM_PX, [_line("limit", 50, 2, _HISTOGRAM_PX)])
    counts = np.histogram(values, _BINS, (low, high))[0].tolist()
    width, top = 100 / _BINS, max(counts)
    parts = []
    for number, count in enumerate(counts):
        if count:
            height = max(round(count / top * (_HISTOGRAM_PX - 3), 1), 1.5)
            parts.append(
                f'<rect class="bin" x="{number * width:.2f}%" y="{round(_HISTOGRAM_PX - height, 1)}" '
                f'width="{width * 0.86:.2f}%" height="{height}"/>'
            )
    parts.append(_line("limit", Scale(low, high).at(mean), 0, _HISTOGRAM_PX))
    return _svg("track", _HISTOGRAM_PX, parts)


def split_bar(parts: Mapping[str, float], label: str) -> str:
    """Shares of a whole, largest first, in one bar; the legend beside it names them in the same order."""
    total = sum(parts.values())
    drawn, x = [], 0.0
    for number, (name, size) in enumerate(sorted(parts.items(), key=lambda item: -item[1])):
        width = 100 * size / total if total else 0.0
        drawn.append(
            f'<rect class="part p{number % 6}" x="{x:.2f}%" y="0" width="{max(width - 0.25, 0.1):.2f}%" height="18">'
            f"<title>{escape(name)}: {format_bytes(size)}</title></rect>"
        )
        x += width
    return _svg("split", 18, drawn, label=label)


def _svg(kind: str, height: int, parts: Sequence[str], label: str = "") -> str:
    described = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg class="{kind}" width="100%" height="{height}" {described}>{"".join(parts)}</svg>'


def _tick(x: float, label: str) -> str:
    anchor = "start" if x < 4 else "end" if x > 95 else "middle"
    return f'<text x="{x}%" y="13" text-anchor="{anchor}">{label}</text>'


def _bar(width: float) -> str:
    return f'<rect class="bar" x="0" y="5" width="{width}%" height="{_TRACK_PX - 10}" rx="1.5"/>'


def _line(kind: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{x}%" x2="{x}%" y1="{top}" y2="{bottom}"/>'


def _mark(x: float, y: float, status: Status) -> str:
    """Round: within the limit. A cross: past it. Hollow: no limit applies."""
    if status == "fail":
        # A nested drawing: its own pixels around a place given in percent.
        cross = '<path class="mark fail" d="M-5-5 5 5M5-5-5 5"/>'
        return f'<svg x="{x}%" y="{y}" overflow="visible">{cross}</svg>'
    return f'<circle class="mark {status}" cx="{x}%" cy="{y}" r="{4.5 if status == "pass" else 3.5}"/>'


def _round_step(about: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above ``about``."""
    power = 10.0 ** math.floor(math.log10(about))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= about * 1.0001)
