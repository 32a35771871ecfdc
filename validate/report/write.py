"""Writes a report's files, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from livemoments.errors import UsageError
from livemoments.store.files import write_file
from livemoments.validate.report.html_page import render_page
from livemoments.validate.report.images_csv import images_csv
from livemoments.validate.report.junit import junit_xml
from livemoments.validate.report.markdown import summary_markdown
from livemoments.validate.report.report_json import encode_report, finite
from livemoments.validate.report_data import ValidationReport

FILES = {
    "json": "report.json",
    "csv": "images.csv",
    "md": "summary.md",
    "junit": "junit.xml",
    "html": "report.html",
}
"""Formats and their files, in the order in which they are written."""
FORMATS = tuple(FILES)


def write_reports(
    report: ValidationReport,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] = FORMATS,
) -> dict[str, Path]:
    """Write a report's files into a folder, which is made if need be.

    Args:
        report: what was measured.
        folder: where; the images' pictures (``ImageResult.files``) are read relative to it.
        formats: which of :data:`FILES`; other files of an earlier report are left as they are.

    Returns:
        The files, by format.

    Raises:
        UsageError: there is no such format.
        MissingExtraError: ``html`` without Jinja2.
        OutputError: a file cannot be written.
    """
    check_formats(formats)
    place, clean = Path(folder), finite(report)
    make_content: dict[str, Callable[[], bytes]] = {
        "json": lambda: encode_report(clean),
        "csv": lambda: images_csv(clean).encode(),
        "md": lambda: summary_markdown(clean).encode(),
        "junit": lambda: junit_xml(clean),
        "html": lambda: render_page(clean, place, beside=[FILES[name] for name in FILES if name in formats]).encode(),
    }
    # A report's numbers must not be lost because the page could not be made: JSON first, HTML last.
    written = {}
    for name in FILES:
        if name in formats:
            written[name] = place / FILES[name]
            write_file(written[name], make_content[name]())
    return written


def check_formats(formats: Sequence[str]) -> None:
    """Refuse a format that no report is written in.

    Raises:
        UsageError: there is no such format.
    """
    if unknown := [name for name in formats if name not in FILES]:
        raise UsageError(f"'{unknown[0]}' is no format of a report", fix=f"use {', '.join(FILES)}")
