"""Shared fixtures; the modules of ``support/`` can be imported by name."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# --import-mode=importlib puts no folder on the path
sys.path.insert(0, str(Path(__file__).parent / "support"))
# Tests import onnxruntime themselves; its telemetry would start with it
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_TORCH = re.compile(r"^\s*(?:import|from) (?:torch|livemoments\.(?:reference|export))\b", re.MULTILINE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by what a test needs, read from its module and fixtures: ``torch``, ``browser``. And an order:

    one test that needs the tiny bundle goes first, and the modules with the others last: one worker makes the bundle
    while the other does something else than wait for it."""

    def needs_bundle(item: pytest.Item) -> bool:
        return "tiny_bundle" in getattr(item, "fixturenames", ())

    sources = {path: path.read_text("utf-8") for path in {item.path for item in items}}
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if _TORCH.search(sources[item.path]) or {"tiny_bundle", "tiny_checkpoint"}.intersection(fixtures):
            item.add_marker("torch")
        if "browser" in fixtures:
            item.add_marker("browser")

    modules = {item.path for item in items if needs_bundle(item)}
    others = [item for item in items if item.path not in modules]
    theirs = [item for item in items if item.path in modules]
    if others and theirs:
        first = next(item for item in theirs if needs_bundle(item))
        items[:] = [first, *others, *(item for item in theirs if item is not first)]


@pytest.fixture(scope="session")
def tiny_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of the smallest size, made once per run; tests must not change it."""

    def make(place: Path) -> None:
        from livemoments.reference.random_checkpoint import make_checkpoint  # torch: only where it is needed

        make_checkpoint(place, size="tiny", seed=0)

    return _once_per_run(request, tmp_path_factory, "tiny_checkpoint", make)


@pytest.fixture(scope="session")
def tiny_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Path:
    """That checkpoint exported for 128-pixel tiles, without comparing it; made once per run, must not be changed."""

    def make(place: Path) -> None:
        from livemoments.export.pipeline import export_bundle
        from livemoments.types import Size

        export_bundle(tiny_checkpoint, place, tiles=(Size(128, 128),), overlap=16, steps=(3, 6), verify="none")

    return _once_per_run(request, tmp_path_factory, "tiny_bundle", make)


def _once_per_run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    make: Callable[[Path], None],
) -> Path:
    """A folder that the first process to need it makes; pytest-xdist's other workers wait for it."""
    is_worker = hasattr(request.config, "workerinput")
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if is_worker else base) / name
    with _locked(place.with_suffix(".lock")):
        if not place.exists():  # both makers write whole folders or none
            make(place)
    return place


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError as error:
        raise RuntimeError("on this system run pytest without -n: there is no lock between its workers") from error
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
