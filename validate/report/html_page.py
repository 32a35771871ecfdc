"""``report.html``: one file with its style, script, charts and pictures inside; it asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livemoments.errors import MissingExtraError
from livemoments.validate.harness.previews import ROLES
from livemoments.validate.report import charts, numbers, page_content
from livemoments.validate.report.gate import gate
from livemoments.validate.report.pictures import error_against, heat_gradient, make_gallery
from livemoments.validate.report.report_json import finite
from livemoments.validate.report_data import ValidationReport

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")
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
    sources = {name: (_TEMPLATES / name).read_text("utf-8") for name in ("page.css", "early.js", "page.js")}
    scripts = " ".join(_digest(sources[name]) for name in ("early.js", "page.js"))
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {scripts}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(_PAGE).render(
        report=clean,
        reasons=gate(clean),
        page=page_content.make_page(clean),
        gallery=make_gallery(clean, folder),
        gradient=heat_gradient(),
        policy=policy,
        sources=sources,
        beside=[name for name in beside if not name.endswith(".html")],
    )


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ModuleNotFoundError as error:
        raise MissingExtraError("writing report.html", "validate", missing=error.name) from None

    def drawing(draw: Any) -> Any:
        return lambda *args, **kwargs: Markup(draw(*args, **kwargs))

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
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


def _digest(script: str) -> str:
    """The script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
