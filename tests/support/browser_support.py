"""The headless Chromium of ``tools/screenshot.py`` for tests, and the mark of those that need it."""

from __future__ import annotations

from typing import Any

import pytest
from tool_support import load_tool

_screenshot = load_tool("screenshot")
needs_browser = pytest.mark.skipif(
    _screenshot.find_browser() is None, reason="no chromium, chromium-browser or google-chrome on the path"
)


def open_browser() -> Any:
    """A browser, to be used in a ``with`` block."""
    return _screenshot.Browser(_screenshot.find_browser())
