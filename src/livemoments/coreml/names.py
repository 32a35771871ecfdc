"""How a bundle's tensors are named in Core ML packages: what writes packages and what runs them agree here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PACKAGE = ".mlpackage"
ENTRY = "Manifest.json"
"""The file of a package that a bundle's manifest names in the package's place; it lies at its top."""
MOTION = "motion_bias"
"""The restoration stage's input (L, B, N, D) of which a chunk of blocks takes its own part."""
_SLICE = re.compile(r"(?P<name>.+)_(?P<start>\d+)_(?P<stop>\d+)")
_OUTSIDE = re.compile(r"[^0-9A-Za-z_]")


def feature_name(name: str) -> str:
    """A tensor's name as Core ML allows it: letters, digits and underscores, e.g. ``reference_k_0``."""
    return _OUTSIDE.sub("_", name)


def slice_name(name: str, start: int, stop: int) -> str:
    """The name of entries [start, stop) of a tensor's first axis, e.g. ``motion_bias.0.6``."""
    return f"{name}.{start}.{stop}"


def parse_slice(feature: str) -> tuple[str, int, int] | None:
    """Tensor, start and stop of such a name as a feature, e.g. ``motion_bias_0_6``; ``None`` if it is none."""
    match = _SLICE.fullmatch(feature)
    return None if match is None else (match["name"], int(match["start"]), int(match["stop"]))


def function_name(size: str) -> str:
    """The function for images of a size, ``WxH``, in a package that serves several."""
    return f"size_{size}"


def packages_of(bundle: Path, files: Sequence[str], ending: str = f"{PACKAGE}/{ENTRY}") -> list[Path]:
    """The packages that a graph's files make up, in the order in which they run.

    Args:
        bundle: the bundle's folder.
        files: the graph's path, then its weights, as the manifest has them.
        ending: of a package's folder and its file in the manifest.
    """
    return [(bundle / name).parent for name in files if name.endswith(ending)]


def files_of(bundle: Path, package: Path, entry: str = ENTRY) -> list[str]:
    """A package's files by their paths in the bundle, the one that stands for it first: what a graph lists."""
    files = sorted(path.relative_to(bundle).as_posix() for path in package.rglob("*") if path.is_file())
    return sorted(files, key=lambda name: not name.endswith(f"/{entry}"))
