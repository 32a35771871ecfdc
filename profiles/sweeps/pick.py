r"""``--pick "memory<8GB, quality_drop<0.2dB, min latency"``: bounds and one thing to be best in, between commas.

::

    expression = clause {"," clause}
    clause     = NAME ("<" | "<=" | ">" | ">=") NUMBER [UNIT]
               | ("min" | "max") NAME
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

from livemoments.errors import UsageError
from livemoments.profiles.sweeps.objectives import (
    DROP,
    DROP_SUFFIX,
    FIDELITY,
    LATENCY,
    MAIN_METRIC,
    find_objectives,
    known_objectives,
    point_title,
    value_of,
    value_text,
)
from livemoments.profiles.sweeps.report_data import Pick, Point
from livemoments.validate.quality.registry import BY_NAME, DEFAULT
from livemoments.validate.report.numbers import format_count

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?(?:e[+-]?\d+)?)|([A-Za-z_][A-Za-z0-9_]*)|(<=|>=|<|>|,)|(\S))")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
)
_UNITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "s": {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
        "bytes": {
            "B": 1.0,
            "kB": 1e3,
            "KB": 1e3,
            "MB": 1e6,
            "GB": 1e9,
            "TB": 1e12,
            "KiB": 2.0**10,
            "MiB": 2.0**20,
            "GiB": 2.0**30,
            "TiB": 2.0**40,
        },
        "dB": {"dB": 1.0},
    }
)
_MUST_HAVE_UNIT = ("bytes",)
_BEST = ("min", "max")
_EXAMPLE = 'write e.g. "memory<8GB, quality_drop<0.2dB, min latency"'


@dataclass(frozen=True, slots=True)
class Bound:
    """A number must be below or above a limit; ``text`` as it was typed."""

    name: str
    sign: str
    limit: float
    text: str


@dataclass(frozen=True, slots=True)
class Wish:
    """A parsed expression: every bound must hold, then the point that is best in ``best`` wins.

    Attributes:
        text: as it was typed.
        bounds: in their order.
        best: ``min`` or ``max``, and of what; ``None``: the lowest latency.
    """

    text: str
    bounds: tuple[Bound, ...]
    best: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def parse_wish(text: str, metrics: Iterable[str] = DEFAULT) -> Wish:
    """Read an expression.

    Args:
        text: as it was typed.
        metrics: that are measured.

    Raises:
        UsageError: names the first token that does not fit, and where it stands; a metric is unknown.
    """
    units = {objective.name: objective.unit for objective in known_objectives(metrics)}
    reader = _Reader(text, units)
    bounds: list[Bound] = []
    best: tuple[str, str] | None = None
    while True:
        if reader.peek.text in _BEST:
            name = reader.take("name", "a name")
            if best is not None:
                reader.refuse(name, "one 'min' or 'max' is enough")
            best = (name.text, reader.known().text)
        else:
            bounds.append(_read_bound(reader, reader.known()))
        if reader.peek.kind == "end":
            return Wish(text, tuple(bounds), best)
        separator = reader.take("sign", "',' or the end")
        if separator.text != ",":
            reader.refuse(separator, "',' or the end is expected")


def check_wish(wish: Wish, *, has_truth: bool) -> None:
    """Before any work: refuse bounds on numbers that a data set without ground truth does not give.

    Raises:
        UsageError: names the first.
    """
    names = [bound.name for bound in wish.bounds] + ([] if wish.best is None else [wish.best[1]])
    for name in names:
        spec = BY_NAME.get(MAIN_METRIC if name == DROP else name.removesuffix(DROP_SUFFIX))
        if spec is not None and spec.needs_truth and not has_truth:
            raise UsageError(f"--pick: '{name}' needs ground truth, which the data set lacks", fix=f"use {FIDELITY}")


def pick(points: Sequence[Point], wish: Wish) -> Pick:
    """The point that keeps every bound and is best in what was asked for; by default the fastest."""
    way, name = wish.best or ("min", LATENCY)
    measured = [point for point in points if point.result.status == "ok"]
    if not measured:
        return Pick(expression=wish.text, point=None, detail="no point could be measured")
    fitting = [point for point in measured if not _missed(point, wish) and value_of(point, name) is not None]
    if fitting:
        winner = min(fitting, key=lambda point: _order(point, way, name))
        best = "lowest" if way == "min" else "highest"
        detail = (
            f"the {best} {name}, {_shown(winner, name)}; {len(fitting)} of {format_count(len(measured), 'point')} fit"
        )
        return Pick(expression=wish.text, point=winner.id, detail=detail)
    nearest = min(measured, key=lambda point: (len(_missed(point, wish)), _order(point, way, name)))
    missed = ", ".join(f"{bound.text} (it has {_shown(nearest, bound.name)})" for bound in _missed(nearest, wish))
    why = f"{point_title(nearest)} comes nearest and misses {missed}" if missed else f"{name} was measured of none"
    return Pick(expression=wish.text, point=None, detail=f"no point fits: {why}")


def _missed(point: Point, wish: Wish) -> list[Bound]:
    missed = []
    for bound in wish.bounds:
        value = value_of(point, bound.name)
        if value is None or not _COMPARE[bound.sign](value, bound.limit):
            missed.append(bound)
    return missed


def _order(point: Point, way: str, name: str) -> float:
    value = value_of(point, name)
    if value is None:
        return math.inf
    return value if way == "min" else -value


def _shown(point: Point, name: str) -> str:
    unit = next((one.unit for one in find_objectives([point]) if one.name == name), "1")
    return value_text(value_of(point, name), unit)


def _read_bound(reader: _Reader, name: _Token) -> Bound:
    sign = reader.take("sign", "'<', '<=', '>' or '>='")
    if sign.text not in _COMPARE:
        reader.refuse(sign, "'<', '<=', '>' or '>=' is expected")
    number = reader.take("number", "a number")
    limit, end = float(number.text), number.end
    units = _UNITS.get(reader.units[name.text], {})
    if reader.peek.kind == "name":
        unit = reader.take("name", "a unit")
        if unit.text not in units:
            reader.refuse(unit, f"{name.text} is measured in {', '.join(units)}" if units else "it has no unit")
        limit, end = limit * units[unit.text], unit.end
    elif reader.units[name.text] in _MUST_HAVE_UNIT:
        reader.refuse(reader.peek, f"a unit is expected: {', '.join(units)}")
    return Bound(name.text, sign.text, limit, reader.text[name.start : end])


class _Reader:
    """The tokens of an expression, one after the other; ``units`` by the names that it may have."""

    def __init__(self, text: str, units: Mapping[str, str]) -> None:
        self.text = text
        self.units = units
        self._tokens = [
            _Token(kind, match[group], match.start(group), match.end(group))
            for match in _TOKEN.finditer(text)
            for group, kind in enumerate(("number", "name", "sign", "other"), start=1)
            if match[group] is not None
        ]
        self._tokens.append(_Token("end", "", len(text), len(text)))
        self._next = 0

    @property
    def peek(self) -> _Token:
        return self._tokens[self._next]

    def take(self, kind: str, wanted: str) -> _Token:
        token = self.peek
        if token.kind != kind:
            self.refuse(token, f"{wanted} is expected")
        self._next += 1
        return token

    def known(self) -> _Token:
        token = self.take("name", "a name such as memory")
        if token.text not in self.units:
            self.refuse(token, f"there is no such number; use {', '.join(self.units)}")
        return token

    def refuse(self, token: _Token, why: str) -> NoReturn:
        what = f"'{token.text}' at character {token.start + 1}" if token.text else "the end"
        raise UsageError(f'--pick "{self.text}": {what}: {why}', fix=_EXAMPLE)
