"""The local weights folder: which metric finds its files in it, and a cache that the deep packages read them from."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from livemoments.errors import UsageError
from livemoments.validate.quality.registry import MetricSpec, Weights

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


def find_file(source: Weights, weights: Path | None) -> Path | None:
    """The first of a source's files that lies in the folder or in one of a torch cache's folders below it."""
    if weights is None:
        return None
    places = [weights / place / name for name in source.files for place in _PLACES]
    return next((place.resolve() for place in places if place.is_file()), None)


def missing(spec: MetricSpec, weights: Path | None) -> str | None:
    """Why a metric cannot be measured here: an extra or a file is missing; ``None`` if a source is at hand."""
    reasons = [_missing(source, weights) for source in spec.sources]
    if None in reasons or not reasons:
        return None
    # The sources with all modules here come first: they are the shorter source to a number.
    found = sorted((reason for reason in reasons if reason), key=lambda reason: reason.startswith("needs"))
    return "; or ".join(dict.fromkeys(found)) + (f" [{spec.licence}]" if spec.licence else "")


def open_source(spec: MetricSpec, weights: Path | None) -> tuple[Weights, Path]:
    """The first source that is at hand, and its file.

    Raises:
        UsageError: none is; :func:`missing` says so beforehand.
    """
    for source in spec.sources:
        file = find_file(source, weights)
        if file is not None and not absent_modules(source):
            return source, file
    raise UsageError(f"{spec.name}: {missing(spec, weights)}")


def absent_modules(source: Weights) -> list[str]:
    """Modules of a source that are not installed."""
    return [name for name in source.modules if importlib.util.find_spec(name) is None]


@contextlib.contextmanager
def hub_cache(file: Path) -> Iterator[Path]:
    """A hub folder that holds one file of weights under its own name, wherever a package may look for it."""
    with tempfile.TemporaryDirectory(prefix="livemoments-hub-") as name:
        for folder in _CACHES:
            place = Path(name) / folder / file.name
            place.parent.mkdir()
            place.symlink_to(file)
        yield Path(name)


def _missing(source: Weights, weights: Path | None) -> str | None:
    if absent_modules(source):
        return f"needs the extra '{source.extra}': pip install 'livemoments-deploy[{source.extra}]'"
    if find_file(source, weights) is None:
        place = "a folder and name it with --iqa-weights" if weights is None else str(weights)
        return f"weights not found: put {' or '.join(source.files)} into {place} (from {source.origin})"
    return None
