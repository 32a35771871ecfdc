"""What several commands do with a bundle: open it with a bar, measure it, describe it as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from livemoments.bundle import Bundle, hash_file
from livemoments.errors import BundleError
from livemoments.manifest import StageEntry, StageParity
from livemoments.progress import Progress
from livemoments.types import Stage

DIS_BY_DESIGN = "the checkpoint has no RAFT, OpenCV's DIS estimates the flow"


def open_checked(path: Path, progress: Progress) -> Bundle:
    """Open a bundle with every hash compared, showing progress: many gigabytes take a while to read.

    Raises:
        BundleError: as :meth:`Bundle.open`; every file whose hash is wrong is named.
    """
    bundle = Bundle.open(path, verify_hashes=False)
    check_hashes(bundle, progress)
    return bundle


def check_hashes(bundle: Bundle, progress: Progress) -> None:
    """Read every file of a bundle and compare its SHA-256.

    Raises:
        BundleError: names every file that is not as the manifest says.
    """
    damaged = []
    with progress.task("Checking the bundle's files", total=bundle_bytes(bundle)) as task:
        for name, entry in bundle.manifest.files.items():
            if hash_file(bundle.path / name).sha256 != entry.sha256:
                damaged.append(name)
            task.advance(entry.bytes, note=name)
    if damaged:
        raise BundleError(
            bundle.path,
            f"changed or damaged, the SHA-256 is not the manifest's: {', '.join(damaged)}",
            fix="copy the bundle again, or export it again",
        )


def stages_of(bundle: Bundle) -> dict[str, StageEntry]:
    """The bundle's stages in the order in which a tile passes through them."""
    return {stage.value: bundle.stage(stage) for stage in Stage if stage.value in bundle.manifest.stages}


def bundle_bytes(bundle: Bundle) -> int:
    """Size of all files that the manifest lists, in bytes."""
    return sum(entry.bytes for entry in bundle.manifest.files.values())


def stage_bytes(bundle: Bundle, entry: StageEntry) -> int:
    """Size of one stage's graphs and weights, in bytes."""
    names = {name for graph in entry.graphs for name in (graph.path, *graph.weights)}
    return sum(bundle.manifest.files[name].bytes for name in names)


def worst_parity(entry: StageEntry) -> StageParity | None:
    """The comparison that came closest to its limit; ``None`` if the stage was not compared."""
    return max(entry.parity, key=lambda parity: parity.rel_l2 / parity.limit, default=None)


def bundle_document(bundle: Bundle) -> dict[str, Any]:
    """What ``export --json`` and ``inspect --json`` print."""
    return {"bundle": bundle.path, "bytes": bundle_bytes(bundle), "manifest": bundle.manifest}
