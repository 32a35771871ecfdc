"""Numbers as text: every writer of a report shows a value the same way, with its unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from livemoments.validate.report_data import Check, Rung

MISSING = "–"
"""Stands for a number that there is none of."""

_BYTE_UNITS = ("KiB", "MiB", "GiB", "TiB")
_KIBI = 1024


def format_value(value: float | None, unit: str) -> str:
    """A value with its unit.

    Args:
        value: what was measured; ``None`` and what is not finite give :data:`MISSING`.
        unit: as in :class:`livemoments.validate.report_data.Check`: ``rel_l2``, ``dB``, ``s``, ``bytes``, ``count``,
            ``1``; any other is written behind the number.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if unit == "rel_l2":
        return format_small(value)
    if unit == "s":
        return format_seconds(value)
    if unit == "bytes":
        return format_bytes(value)
    if unit == "count":
        return f"{value:,.0f}" if float(value).is_integer() else format_plain(value)
    if unit == "dB":
        return f"{value:.2f} dB"
    if unit in ("", "1"):
        return format_plain(value)
    return f"{format_plain(value)} {unit}"


def format_small(value: float | None) -> str:
    """Scientific with two digits, ``3.1e-4``: for errors that span orders of magnitude."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def format_plain(value: float | None) -> str:
    """Four digits, so that columns line up; very small numbers scientifically."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if size < 5e-4:
        return format_small(value)
    if size < 1:
        return f"{value:.4f}"
    if size < 999.95:
        return f"{value:#.4g}"
    return f"{value:,.0f}"


def format_seconds(value: float | None) -> str:
    """``812 µs``, ``4.31 ms``, ``1.27 s``, ``2 min 05 s``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value < 0:
        return f"−{format_seconds(-value)}"
    if value == 0:
        return "0 s"
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{_digits(value * 1e3)} ms"
    if value < 100:
        return f"{_digits(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(value: float | None) -> str:
    """``640 B``, ``12.3 MiB``, ``1.21 GiB``: powers of 1024."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < _KIBI:
        return f"{value:.0f} B"
    size = float(value)
    for unit in _BYTE_UNITS:
        size /= _KIBI
        if abs(size) < _KIBI or unit == _BYTE_UNITS[-1]:
            return f"{_digits(size)} {unit}"
    raise AssertionError("the loop ends with the last unit")


def format_change(before: float | None, now: float | None, unit: str) -> str:
    """How a value moved: in its unit for dB and counts, else in percent."""
    if before is None or now is None or not (math.isfinite(before) and math.isfinite(now)):
        return MISSING
    if unit in ("dB", "count") or before == 0:
        return format_signed(now - before, unit)
    share = (now - before) / abs(before) * 100
    if share >= 100:
        return f"×{now / before:.3g}"
    return f"{_sign(share)}{abs(share):.1f} %"


def format_signed(value: float | None, unit: str) -> str:
    """A difference with its sign and unit."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{_sign(value)}{format_value(abs(value), unit)}"


def format_limit(limit: float | None, unit: str, better: str) -> str:
    """``≤ 1e-4`` or ``≥ 45 dB``; empty without a limit."""
    if limit is None:
        return ""
    return f"{'≤' if better == 'lower' else '≥'} {format_round(limit, unit)}"


def format_measured(entry: Check | Rung) -> str:
    """``3.1e-5 (limit ≤ 1e-4)``, or the number alone where there is no limit."""
    limit = format_limit(entry.limit, entry.unit, entry.better)
    return format_value(entry.value, entry.unit) + (f" (limit {limit})" if limit else "")


def format_count(count: int, word: str) -> str:
    """``1 image``, ``1,234 images``."""
    return f"{count:,} {word if count == 1 else word + 's'}"


def first_few(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first names, and how many more there are: ``a, b, c and 4 more``."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more} more" if more > 0 else "")


def format_round(value: float, unit: str) -> str:
    """A number that somebody chose, a limit or a tick: without the zeros that say how exactly it was measured."""
    text = format_value(value, unit)
    number, space, rest = text.partition(" ")
    mantissa, e, exponent = number.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}{e}{exponent}{space}{rest}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def _sign(value: float) -> str:
    return "+" if value > 0 else "−" if value < 0 else "±"
