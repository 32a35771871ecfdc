"""``sweep.html``: the points on axes to choose, a detail of the photo at each, the command for it; one offline file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemoments.profiles.sweeps.objectives import point_title, value_of, value_text
from livemoments.profiles.sweeps.report_data import Point, SweepReport
from livemoments.validate.report.numbers import format_count
from livemoments.validate.report.offline_page import TEMPLATES, content_policy, data_uri, page_environment

_OWN = Path(__file__).with_name("templates")
_PAGE = "sweep.html.j2"
_SCRIPTS = ("early.js", "sweep.js", "page.js")
_EXACT = "exact fp32"
_BUNDLE_COLOURS = 6


@dataclass(frozen=True)
class PagePictures:
    """The same detail of one photo as JPEG files.

    Attributes:
        points: by the points' ids.
        exacts: by the exact results' keys.
        beside: others, by what they are called.
    """

    points: Mapping[str, bytes]
    exacts: Mapping[str, bytes]
    beside: Mapping[str, bytes]


def check_page() -> None:
    """Before long work: whether the page can be made at its end.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    page_environment(_OWN, writing="writing sweep.html")


def render_page(report: SweepReport, pictures: PagePictures) -> str:
    """The page. Its policy forbids every request, and every script but its own three.

    Args:
        report: what was measured.
        pictures: what is shown beside the chart.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    environment = page_environment(_OWN, writing="writing sweep.html")
    places = {"page.css": TEMPLATES, "early.js": TEMPLATES, "page.js": TEMPLATES, "sweep.css": _OWN, "sweep.js": _OWN}
    sources = {name: (place / name).read_text("utf-8") for name, place in places.items()}
    bundles = list(dict.fromkeys(point.bundle for point in report.points))
    axes = list(dict.fromkeys(name for point in report.points for name in point.values))
    measured = [point for point in report.points if point.result.status == "ok"]
    return environment.get_template(_PAGE).render(
        report=report,
        policy=content_policy(sources[name] for name in _SCRIPTS),
        sources=sources,
        data=_as_json(_data(report, measured, bundles, pictures)),
        bundles=[(name, number % _BUNDLE_COLOURS) for number, name in enumerate(bundles)],
        axes=axes,
        measured=measured,
        failed=[(point_title(point), point.result.error) for point in report.points if point.result.status == "failed"],
        shown={
            point.id: {one.name: _shown(point, one.name, one.unit) for one in report.objectives} for point in measured
        },
        compared=[one.title for one in report.objectives if one.name in report.compared],
        on_front=sum(point.front for point in report.points),
        counted=format_count(len(report.points), "point"),
        images=format_count(report.dataset.images, "image"),
        picked=next((point_title(one) for one in measured if report.pick and report.pick.point == one.id), None),
    )


def _data(report: SweepReport, measured: list[Point], bundles: list[str], pictures: PagePictures) -> dict[str, Any]:
    """What the script draws."""
    crops = {name: data_uri(data, "image/jpeg") for name, data in pictures.beside.items()}
    exacts = {key: data_uri(data, "image/jpeg") for key, data in pictures.exacts.items()}
    return {
        "objectives": [
            {"name": one.name, "title": one.title, "unit": one.unit, "better": one.better} for one in report.objectives
        ],
        "start": [report.compared[0], report.compared[-1]] if report.compared else [],
        "exact": _EXACT,
        "exacts": exacts,
        "beside": crops,
        "points": [
            {
                "id": point.id,
                "title": point_title(point),
                "colour": bundles.index(point.bundle) % _BUNDLE_COLOURS,
                "picked": report.pick is not None and report.pick.point == point.id,
                "values": {one.name: _number(point, one.name) for one in report.objectives},
                "texts": {one.name: _shown(point, one.name, one.unit) for one in report.objectives},
                "crop": data_uri(pictures.points[point.id], "image/jpeg"),
                "exact": point.exact,
                "command": point.command,
            }
            for point in measured
        ],
    }


def _number(point: Point, name: str) -> float | str | None:
    """As JSON has it; ``best`` is what no number can be: infinite decibels."""
    value = value_of(point, name)
    return "best" if value == math.inf else value


def _shown(point: Point, name: str, unit: str) -> str:
    return value_text(value_of(point, name), unit)


def _as_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element which holds it."""
    return json.dumps(data).replace("<", "\\u003c")
