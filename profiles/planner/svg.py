"""The memory timeline of a plan as an SVG picture, for print: one stacked bar a stage, the budget as a line."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from livemoments.profiles.planner.plan import Plan, Plans
from livemoments.profiles.planner.timeline import Segment

_WIDTH, _HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 190, 56, 92
_LEAST_PX = 14.0  # of a bar, so that a short stage is seen
_COLOURS = {
    "process": "#9aa0a6",
    "images": "#c9b458",
    "latents and flow": "#b8860b",
    "keys and values": "#7b4fa3",
    "driver": "#5f6368",
    "flow": "#4e9a8f",
    "vae_encoder": "#3f77b5",
    "motion": "#77a8dd",
    "reference": "#b5483f",
    "restoration": "#dd8a5f",
    "vae_decoder": "#2c5282",
    "activations": "#e3b7c8",
}
_OTHER = "#888888"


def plan_svg(plans: Plans, plan: Plan) -> str:
    """Draw one plan.

    Widths are the stages' predicted times, none narrower than a few pixels; all are equal where no time is known.
    """
    on_device = plan.peak_bytes != plan.host_peak_bytes
    bars = [segment.device if on_device else segment.host for segment in plan.segments]
    top = max(plan.peak_bytes, plans.budget_bytes if plan.fits and plans.budget_bytes else 0) * 1.05
    if plans.budget_bytes is not None and plans.budget_bytes > 3 * plan.peak_bytes:
        top = plan.peak_bytes * 1.15  # a line far above would flatten the bars
    step = _nice(top / 6)
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def y_of(count: float) -> float:
        return _TOP + inner_height * (1 - count / top)

    where = "on the accelerator" if on_device else "of the process"
    title = f"{plans.photo} photo, {plan.tiles} tiles of {plan.tile}: {_gb(plan.peak_bytes)} at the peak {where}"
    under = f"{plans.profile}, {plan.reference}, engines: {plan.residency}; predicted, {plans.engine}"
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><title>{escape(title)}</title><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="24" font-size="15">{escape(title)}</text>',
        f'<text x="{_LEFT}" y="42" fill="#555">{escape(under)}</text>',
    ]
    for number in range(int(top / step) + 1):
        y = y_of(number * step)
        out.append(f'<line x1="{_LEFT}" x2="{_LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_gb(number * step)}</text>')
    x = float(_LEFT)
    for segment, parts, width in zip(plan.segments, bars, _widths(plan.segments, inner_width), strict=True):
        base = 0
        for name, count in parts.items():
            height = inner_height * count / top
            tip = f"{segment.label}: {name} {_gb(count)}"
            out.append(
                f'<rect x="{x:.1f}" y="{y_of(base + count):.1f}" width="{width:.1f}" height="{height:.2f}" '
                f'fill="{_COLOURS.get(name, _OTHER)}" stroke="white" stroke-width="0.5">'
                f"<title>{escape(tip)}</title></rect>"
            )
            base += count
        middle = x + width / 2
        group = "" if segment.group is None else f" · {segment.group + 1}"
        out.append(
            f'<text transform="translate({middle + 4:.1f} {_TOP + inner_height + 8}) rotate(-45)" text-anchor="end" '
            f'font-size="10">{escape(segment.label)}{group}</text>'
        )
        x += width
    if plans.budget_bytes is not None and plans.budget_bytes <= top:
        y = y_of(plans.budget_bytes)
        out.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#c00" '
            f'stroke-dasharray="6 4"/><text x="{_LEFT + inner_width + 4}" y="{y + 4:.1f}" fill="#c00">budget '
            f"{_gb(plans.budget_bytes)}</text>"
        )
    names = [name for name in _COLOURS if any(name in parts for parts in bars)]
    for number, name in enumerate(names):
        y = _TOP + 24 + 18 * number
        out.append(f'<rect x="{_WIDTH - _RIGHT + 20}" y="{y}" width="12" height="12" fill="{_COLOURS[name]}"/>')
        out.append(f'<text x="{_WIDTH - _RIGHT + 38}" y="{y + 10}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _widths(segments: tuple[Segment, ...], total: int) -> list[float]:
    seconds = [segment.seconds for segment in segments]
    known = sum(value for value in seconds if value is not None)
    if any(value is None for value in seconds) or known <= 0:
        return [total / len(segments)] * len(segments)
    spare = max(0.0, total - _LEAST_PX * len(segments))
    least = min(_LEAST_PX, total / len(segments))
    return [least + spare * (value or 0.0) / known for value in seconds]


def _nice(value: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, at least ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value)


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 9.5e8 else f"{count / 1e6:.0f} MB"
