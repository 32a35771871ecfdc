"""The photos to calibrate with: a folder in upstream's layout, of which every one must be usable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from livemoments.errors import ImageError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime import upstream_layout
from livemoments.runtime.photo_index import index_photos


def read_set(
    folder: str | os.PathLike[str], *, limit: int | None = None, progress: Progress = SILENT
) -> tuple[LivePhoto[Path], ...]:
    """Index a calibration folder, decoding every image once, so that a bad one is found now and not hours later.

    Args:
        folder: holds ``lr/``, ``ref/`` and perhaps ``ref_lr/`` with the same names in each (suffixes may differ).
        limit: at most this many photos, spread evenly over the names in order; ``None`` takes all.
        progress: where to report.

    Raises:
        ImageError: there is no such folder, a part of it is missing or empty, names do not match, or images cannot be
            read or do not fit each other: one error that names them.
        UsageError: the limit is below 1.
    """
    photos, rejected = index_photos(folder, limit=limit, progress=progress)
    if not rejected:
        return photos
    first, total = next(iter(rejected.values())), len(photos) + len(rejected)
    problem = "a calibration photo cannot be used"
    if len(rejected) > 1:
        names = upstream_layout.listed(list(rejected))
        problem = f"{len(rejected)} of {total} calibration photos cannot be used: {names}; the first"
    raise ImageError(folder, f"{problem}: {first.message}", fix=first.fix or "replace them or take them out of the set")


def set_sha256(photos: Sequence[LivePhoto[Path]]) -> str:
    """SHA-256 of a set: its photos' names and contents, in order."""
    return upstream_layout.set_sha256({photo.name: photo.sha256 for photo in photos})
