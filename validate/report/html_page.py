"""``report.html``: one file with its style, script, charts and pictures inside; it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livemoments.validate.harness.previews import ROLES
from livemoments.validate.report import charts, numbers, page_content
from livemoments.validate.report.gate import gate
from livemoments.validate.report.offline_page import TEMPLATES, content_policy, page_environment
from livemoments.validate.report.pictures import error_against, heat_gradient, make_gallery
from livemoments.validate.report.report_json import finite
from livemoments.validate.report_data import ValidationReport

if TYPE_CHECKING:
    from jinja2 import Environment

_PAGE = "page.html.j2"
_DRAWINGS = (
    charts.bar_track,
    charts.error_track,
    charts.histogram,
    charts.latency_track,
    charts.log_axis,
    charts.seconds_axis,
    charts.split_bar,
)


def render_page(report: ValidationReport, folder: Path, *, beside: Sequence[str] = ()) -> str:
    """The page.

    A content security policy in it forbids every request, and every script but its own two.

    Args:
        report: what was measured.
        folder: the report's; pictures are read relative to it.
        beside: names of files in the same folder to link to.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    clean = finite(report)
    environment = _environment()
    sources = {name: (TEMPLATES / name).read_text("utf-8") for name in ("page.css", "early.js", "page.js")}
    return environment.get_template(_PAGE).render(
        report=clean,
        reasons=gate(clean),
        page=page_content.make_page(clean),
        gallery=make_gallery(clean, folder),
        gradient=heat_gradient(),
        policy=content_policy(sources[name] for name in ("early.js", "page.js")),
        sources=sources,
        beside=[name for name in beside if not name.endswith(".html")],
    )


def _environment() -> Environment:
    def drawing(draw: Any) -> Any:
        from markupsafe import Markup

        return lambda *args, **kwargs: Markup(draw(*args, **kwargs))

    environment = page_environment(writing="writing report.html")
    environment.globals.update({draw.__name__: drawing(draw) for draw in _DRAWINGS})
    environment.globals.update(
        terms=page_content.TERMS,
        error_against=error_against,
        roles=ROLES,
        memory_title=page_content.memory_title,
        limit_text=numbers.format_limit,
        change_text=numbers.format_change,
        metric_value=page_content.metric_value,
    )
    environment.filters.update(
        value=numbers.format_value,
        small=numbers.format_small,
        plain=numbers.format_plain,
        seconds=numbers.format_seconds,
        bytes=numbers.format_bytes,
        size=page_content.size_text,
    )
    return environment
