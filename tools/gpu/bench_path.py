"""Lets the benchmark run from a bare checkout, where the package is not installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_importable() -> str:
    """Make ``import livemoments.export`` and the like work; says where the package comes from.

    An installed package is used as it is. Otherwise the checkout's folders become the package: ``src/livemoments`` and
    the top-level folders that pyproject.toml maps into it.
    """
    spec = importlib.util.find_spec("livemoments")
    if spec is not None:
        return "installed"
    package = types.ModuleType("livemoments")
    package.__path__ = [str(ROOT / "src" / "livemoments"), str(ROOT)]
    sys.modules["livemoments"] = package
    return "checkout"
