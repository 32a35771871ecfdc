"""What all pages of ours share: Jinja2's environment, and a policy that forbids requests and every other script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from livemoments.errors import MissingExtraError

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
"""The report's; every page takes its style from here."""


def page_environment(*folders: Path, writing: str) -> Environment:
    """Templates of these folders and the report's, in which every value is escaped and a missing one is an error.

    Args:
        folders: that are looked in first.
        writing: what is being done, for the error.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingExtraError(writing, "validate", missing=error.name) from None
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def content_policy(scripts: Iterable[str]) -> str:
    """The content security policy of a page with these scripts inside: pictures and styles of its own, nothing else."""
    digests = " ".join(_digest(script) for script in scripts)
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {digests}; base-uri 'none'; form-action 'none'"
    )


def data_uri(data: bytes, mime: str) -> str:
    """A file inside the page."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _digest(script: str) -> str:
    """The script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
