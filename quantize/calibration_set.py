"""The photos to calibrate with: a folder in upstream's layout, checked before any work begins."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, LiveMomentsError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.runtime.images import check_pair_sizes, read_photo

FRAMES, PHOTOS, PHOTO_FRAMES = "lr", "ref", "ref_lr"
"""Upstream's names: reselected video frames, key photos, video frames at the key photos' instants."""
_LAYOUT_FIX = "name a folder with lr/ (video frames), ref/ (key photos) and, if you have them, ref_lr/ (key frames)"
_MOST_NAMED = 5


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
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} photos leaves none", fix="use 1 or more")
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(folder, "no such folder", fix=_LAYOUT_FIX)
    frames, photos = _files(root, FRAMES), _files(root, PHOTOS)
    key_frames = _files(root, PHOTO_FRAMES) if (root / PHOTO_FRAMES).exists() else None
    _check_names(root, {FRAMES: frames, PHOTOS: photos, PHOTO_FRAMES: key_frames if key_frames is not None else photos})
    names = sorted(photos)
    if limit is not None and limit < len(names):
        names = [names[number * len(names) // limit] for number in range(limit)]
    items, bad = [], {}
    with progress.task("Checking the calibration photos", len(names)) as task:
        for name in names:
            try:
                items.append(_item(name, frames[name], photos[name], key_frames[name] if key_frames else None))
            except (FileError, UsageError) as error:
                bad[name] = error
            task.advance(1, note=name)
    if bad:
        _refuse(root, bad, len(names))
    return tuple(items)


def set_sha256(items: tuple[CalibrationItem, ...]) -> str:
    """SHA-256 of a set: its photos' names and contents, in order."""
    lines = "".join(f"{item.name}:{item.sha256}\n" for item in items)
    return hashlib.sha256(lines.encode()).hexdigest()


def _files(root: Path, part: str) -> dict[str, Path]:
    folder = root / part
    if not folder.is_dir():
        raise ImageError(root, f"there is no folder '{part}' in it", fix=_LAYOUT_FIX)
    try:
        found = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise ImageError(folder, f"cannot be read ({error.strerror})", fix="check its permissions") from None
    if not found:
        raise ImageError(folder, "holds no images", fix=_LAYOUT_FIX)
    files: dict[str, Path] = {}
    for path in found:
        if (other := files.setdefault(path.stem, path)) is not path:
            raise ImageError(folder, f"{other.name} and {path.name} have one name", fix="keep one of them")
    return files


def _check_names(root: Path, parts: Mapping[str, Mapping[str, Path]]) -> None:
    everywhere = set.union(*(set(files) for files in parts.values()))
    missing = [f"{part}/{name}" for part, files in parts.items() for name in sorted(everywhere - set(files))]
    if missing:
        raise ImageError(
            root,
            f"the folders do not hold the same names; there is no {_listed(missing)}",
            fix="give the images of one photo the same name in each folder, and remove the rest",
        )


def _item(name: str, frame: Path, photo: Path, photo_frame: Path | None) -> CalibrationItem:
    paths = [path for path in (frame, photo, photo_frame) if path is not None]
    check_pair_sizes(*(read_photo(path) for path in paths))
    digest = hashlib.sha256("".join(f"{hash_file(path).sha256}\n" for path in paths).encode()).hexdigest()
    return CalibrationItem(name, frame, photo, photo_frame, digest)


def _refuse(root: Path, bad: Mapping[str, LiveMomentsError], total: int) -> None:
    first = next(iter(bad.values()))
    if len(bad) == 1:
        raise ImageError(root, f"a calibration photo cannot be used: {first.message}", fix=first.fix)
    raise ImageError(
        root,
        f"{len(bad)} of {total} calibration photos cannot be used: {_listed(list(bad))}; the first: {first.message}",
        fix="replace them or take them out of the set",
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
