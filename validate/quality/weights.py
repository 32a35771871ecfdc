"""The local weights folder: which metric finds its files in it, and a cache that the deep packages read them from."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import UsageError
from livemoments.validate.quality.registry import MetricSpec, Way

# Where a file may lie below the folder, so that a copy of $TORCH_HOME, or of its hub folder, will do.
_PLACES = ("", "checkpoints", "pyiqa", "clip", "hub/checkpoints", "hub/pyiqa", "hub/clip")
# Below the hub folder: torchvision's and piq's downloads, pyiqa's, and CLIP's as pyiqa loads it.
_CACHES = ("checkpoints", "pyiqa", "clip")


def check_folder(weights: Path | None) -> None:
    """Refuse a weights folder that is not there.

    Raises:
        UsageError: it is none.
    """
    if weights is not None and not weights.is_dir():
        raise UsageError(
            f"{weights}: the folder of the metrics' weights is not there", fix="name it with --iqa-weights"
        )


def find_file(way: Way, weights: Path | None) -> Path | None:
    """The first of a way's files that lies in the folder or in one of a torch cache's folders below it."""
    if weights is None:
        return None
    places = [weights / place / name for name in way.files for place in _PLACES]
    return next((place.resolve() for place in places if place.is_file()), None)


def missing(spec: MetricSpec, weights: Path | None) -> str | None:
    """Why a metric cannot be measured here: an extra or a file is missing; ``None`` if one of its ways is open."""
    reasons = [_missing(way, weights) for way in spec.ways]
    if None in reasons or not reasons:
        return None
    # The ways with all modules here come first: they are the shorter way to a number.
    found = sorted((reason for reason in reasons if reason), key=lambda reason: reason.startswith("needs"))
    return "; or ".join(dict.fromkeys(found)) + (f" [{spec.licence}]" if spec.licence else "")


def open_way(spec: MetricSpec, weights: Path | None) -> tuple[Way, Path]:
    """The first way that is open, and its file.

    Raises:
        UsageError: none is; :func:`missing` says so beforehand.
    """
    for way in spec.ways:
        file = find_file(way, weights)
        if file is not None and not absent_modules(way):
            return way, file
    raise UsageError(f"{spec.name}: {missing(spec, weights)}")


def absent_modules(way: Way) -> list[str]:
    """Modules of a way that are not installed."""
    return [name for name in way.modules if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def hub_cache(file: Path) -> Iterator[Path]:
    """A hub folder that holds one file of weights under its own name, wherever a package may look for it."""
    with tempfile.TemporaryDirectory(prefix="livemoments-hub-") as name:
        for folder in _CACHES:
            place = Path(name) / folder / file.name
            place.parent.mkdir()
            place.symlink_to(file)
        yield Path(name)


def _missing(way: Way, weights: Path | None) -> str | None:
    if absent_modules(way):
        return f"needs the extra '{way.extra}': pip install 'livemoments-deploy[{way.extra}]'"
    if find_file(way, weights) is None:
        place = "a folder and name it with --iqa-weights" if weights is None else str(weights)
        return f"weights not found: put {' or '.join(way.files)} into {place} (from {way.source})"
    return None
