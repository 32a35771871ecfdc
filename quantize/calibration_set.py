"""The photos to calibrate with: a folder in upstream's layout, checked before any work begins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, LiveMomentsError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.runtime import photo_set
from livemoments.runtime.images import check_pair_sizes, read_photo
from livemoments.runtime.photo_set import FRAMES, PHOTO_FRAMES, PHOTOS, listed

__all__ = ["FRAMES", "PHOTOS", "PHOTO_FRAMES", "CalibrationItem", "read_set", "set_sha256"]


@dataclass(frozen=True, slots=True)
class CalibrationItem:
    """One photo.

    Attributes:
        name: the files' common name, without suffix.
        frame, photo, photo_frame: the reselected frame, the key photo, and the clip's frame at its instant, if given.
        sha256: of the files' contents.
    """

    name: str
    frame: Path
    photo: Path
    photo_frame: Path | None
    sha256: str


def read_set(
    folder: str | os.PathLike[str], *, limit: int | None = None, progress: Progress = SILENT
) -> tuple[CalibrationItem, ...]:
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
    parts = photo_set.list_photos(folder)
    frames, photos, key_frames = parts[FRAMES], parts[PHOTOS], parts.get(PHOTO_FRAMES)
    names = photo_set.spread(photos, limit)
    items, bad = [], {}
    with progress.task("Checking the calibration photos", len(names)) as task:
        for name in names:
            try:
                items.append(_item(name, frames[name], photos[name], key_frames[name] if key_frames else None))
            except (FileError, UsageError) as error:
                bad[name] = error
            task.advance(1, note=name)
    if bad:
        _refuse(Path(folder), bad, len(names))
    return tuple(items)


def set_sha256(items: tuple[CalibrationItem, ...]) -> str:
    """SHA-256 of a set: its photos' names and contents, in order."""
    return photo_set.set_sha256({item.name: item.sha256 for item in items})


def _item(name: str, frame: Path, photo: Path, photo_frame: Path | None) -> CalibrationItem:
    paths = [path for path in (frame, photo, photo_frame) if path is not None]
    check_pair_sizes(*(read_photo(path) for path in paths))
    digest = photo_set.joint_sha256(hash_file(path).sha256 for path in paths)
    return CalibrationItem(name, frame, photo, photo_frame, digest)


def _refuse(root: Path, bad: Mapping[str, LiveMomentsError], total: int) -> None:
    first = next(iter(bad.values()))
    if len(bad) == 1:
        raise ImageError(root, f"a calibration photo cannot be used: {first.message}", fix=first.fix)
    raise ImageError(
        root,
        f"{len(bad)} of {total} calibration photos cannot be used: {listed(list(bad))}; the first: {first.message}",
        fix="replace them or take them out of the set",
    )
