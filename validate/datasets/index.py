"""A folder of images to validate on, in upstream's layout, with every image checked before any work begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from livemoments.errors import ImageError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime import upstream_layout
from livemoments.runtime.photo_index import index_photos
from livemoments.runtime.upstream_layout import PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.validate.datasets.cache import FileCache
from livemoments.validate.datasets.descriptors import Descriptor
from livemoments.validate.datasets.descriptors import descriptor as find_descriptor


@dataclass(frozen=True, slots=True)
class Dataset:
    """An indexed folder.

    Attributes:
        name: the descriptor's title, or the folder's name.
        root: the folder.
        items: the photos that can be used, in the order of their names.
        rejected: the others: name, and one sentence on why.
        descriptor: name of the known set that it is meant to be (``synlive260`` …).
        sha256: over the names and contents of ``items``.
        has_truth: every item has a ``gt``.
    """

    name: str
    root: Path
    items: tuple[LivePhoto[Path], ...]
    rejected: tuple[tuple[str, str], ...]
    descriptor: str | None
    sha256: str
    has_truth: bool


def open_dataset(
    folder: str | os.PathLike[str],
    *,
    descriptor: str | None = None,
    limit: int | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> Dataset:
    """Index a folder, decoding and hashing every image once; nothing is written into it.

    An image that cannot be read or does not fit the others rejects its photo, not the set.

    Args:
        folder: holds ``lr/``, ``ref/`` and perhaps ``ref_lr/`` and ``gt/`` with the same names in each (suffixes may
            differ).
        descriptor: name of the known set that the folder must be: its count and its ground truth are required.
        limit: at most this many photos, spread evenly over the names in order; ``None`` takes all. A named set may
            then have any number of photos.
        work: folder for what was found, by path, size and time of change: the same images are not decoded again.
        progress: where to report.

    Raises:
        ImageError: there is no such folder, a part of it is missing or empty, names do not match, it is not the named
            set, or not one photo can be used.
        UsageError: the limit is below 1, or the descriptor is unknown.
        OutputError: the work folder cannot be written.
    """
    known = None if descriptor is None else find_descriptor(descriptor)
    root = Path(folder)
    if known is not None:
        parts = upstream_layout.list_photos(root, optional=(PHOTO_FRAMES, TRUTHS))
        _check_known(root, known, len(parts[PHOTOS]), TRUTHS in parts, limit)
    cache = FileCache(None if work is None else Path(work))
    items, errors = index_photos(root, optional=(PHOTO_FRAMES, TRUTHS), limit=limit, checked=cache, progress=progress)
    rejected = tuple((name, error.message) for name, error in errors.items())
    if not items:
        first = rejected[0][1]
        message = f"not one of its {len(rejected)} photos can be used; the first: {first}"
        raise ImageError(root, message, fix="check the images, or name another folder")
    return Dataset(
        name=known.title if known else root.resolve().name,
        root=root,
        items=items,
        rejected=rejected,
        descriptor=descriptor,
        sha256=upstream_layout.set_sha256({item.name: item.sha256 for item in items}),
        has_truth=items[0].truth is not None,
    )


def _check_known(root: Path, known: Descriptor, count: int, has_truth: bool, limit: int | None) -> None:
    if limit is None and count != known.count:
        raise ImageError(
            root,
            f"holds {count} photos; {known.title} has {known.count}",
            fix="complete the set, leave its name out, or set a limit to take some of its photos on purpose",
        )
    if known.has_truth and not has_truth:
        message = f"{known.title} has ground truth, and there is no folder '{TRUTHS}' in it"
        raise ImageError(root, message, fix=f"put the ground truth into '{TRUTHS}', or leave the set's name out")
