"""Reports: what ``validate`` and ``demo`` hand back, printed and turned into an exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec

from livemoments.cli.exits import EXIT_CHECK_FAILED
from livemoments.cli.output import write_json
from livemoments.errors import OutputError
from livemoments.store.files import write_file


class Document(Protocol):
    """What can be written as JSON."""

    def to_json(self) -> Mapping[str, Any]:
        """The whole as JSON-ready data."""


class Report(Document, Protocol):
    """The result of a comparison."""

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""

    def to_text(self) -> str:
        """The report for people, some lines."""


def finish(report: Report, *, as_json: bool) -> None:
    """Print a report; exit code 1 when a limit was missed."""
    if as_json:
        write_json(report.to_json())
    else:
        click.echo(report.to_text())
    if not report.passed:
        click.get_current_context().exit(EXIT_CHECK_FAILED)


def check_writable(path: Path) -> None:
    """Before long work: can this file be written?

    Raises:
        OutputError: it is a folder, or its folder is missing or read-only.
    """
    if path.is_dir():
        raise OutputError(path, "is a folder", fix="name a file, e.g. report.json")
    if not path.parent.is_dir():
        raise OutputError(path.parent, "no such folder", fix="make it, or choose another -o")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(path, "cannot be written (permission denied)", fix="choose another -o")


def write_report(report: Document, path: Path) -> None:
    """Write a report's JSON to a file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(path, msgspec.json.format(msgspec.json.encode(report.to_json()), indent=2) + b"\n")
