"""The headless Chromium of ``tools/screenshot.py`` for tests, and the mark of those that need it."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from places import ROOT


def _load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshot", ROOT / "tools" / "screenshot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


screenshot = _load_tool()
needs_browser = pytest.mark.skipif(
    screenshot.find_browser() is None, reason="no chromium, chromium-browser or google-chrome on the path"
)


def open_browser() -> Any:
    """A browser, to be used in a ``with`` block."""
    return screenshot.Browser(screenshot.find_browser())
