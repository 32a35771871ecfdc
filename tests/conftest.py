"""Shared test helpers: modules beside the tests (``fake_bundle``) can be imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# --import-mode=importlib puts no folder on the path
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the smallest size, made once per session; tests must not change it."""
    from livemoments.reference.random_checkpoint import make_checkpoint  # torch: only where it is needed

    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", size="tiny", seed=0)
