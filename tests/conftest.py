"""Shared test helpers: modules beside the tests (``fake_bundle``) can be imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

# --import-mode=importlib puts no folder on the path
sys.path.insert(0, str(Path(__file__).parent))
