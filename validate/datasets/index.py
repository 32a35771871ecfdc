"""A folder of images to validate on, in upstream's layout, with every image checked before any work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, OutputError, UsageError
from livemoments.progress import SILENT, Progress
from livemoments.runtime import photo_set
from livemoments.runtime.images import Photo, check_pair_sizes, read_photo
from livemoments.runtime.photo_set import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.datasets.cache import CheckedFile, FileCache
from livemoments.validate.datasets.descriptors import Descriptor
from livemoments.validate.datasets.descriptors import descriptor as find_descriptor

_THREADS = 4  # decoding lets go of Python's lock; each thread holds one image


@dataclass(frozen=True, slots=True)
class DatasetItem:
    """One photo.

    Attributes:
        name: the files' common name, without suffix.
        lr, ref, ref_lr: the reselected frame, the key photo, and the clip's frame at its instant, if given.
        gt: the reselected instant in full quality, of the key photo's size, if given.
        sha256: of the files' contents.
    """

    name: str
    lr: Path
    ref: Path
    ref_lr: Path | None
    gt: Path | None
    sha256: str


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
    items: tuple[DatasetItem, ...]
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
    photo_set.spread((), limit)  # a limit below 1 is refused first
    root = Path(folder)
    parts = photo_set.list_photos(root, optional=(PHOTO_FRAMES, TRUTHS))
    if known is not None:
        _check_known(root, known, len(parts[PHOTOS]), TRUTHS in parts, limit)
    names = photo_set.spread(parts[PHOTOS], limit)
    items: list[DatasetItem] = []
    rejected: list[tuple[str, str]] = []
    cache = FileCache(None if work is None else Path(work))
    photos = [{part: files[name] for part, files in parts.items()} for name in names]
    with progress.task("Checking the images", len(names)) as task:
        for name, paths, verdict in zip(names, photos, _check_all(photos, cache), strict=True):
            if verdict.reason:
                rejected.append((name, verdict.reason))
            else:
                optional = (paths.get(PHOTO_FRAMES), paths.get(TRUTHS))
                items.append(DatasetItem(name, paths[FRAMES], paths[PHOTOS], *optional, verdict.sha256))
            task.advance(1, note=name)
    if not items:
        first = rejected[0][1]
        message = f"not one of its {len(names)} photos can be used; the first: {first}"
        raise ImageError(root, message, fix="check the images, or name another folder")
    return Dataset(
        name=known.title if known else root.resolve().name,
        root=root,
        items=tuple(items),
        rejected=tuple(rejected),
        descriptor=descriptor,
        sha256=photo_set.set_sha256({item.name: item.sha256 for item in items}),
        has_truth=TRUTHS in parts,
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


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The SHA-256 of a photo's files, or why it cannot be used."""

    sha256: str = ""
    reason: str = ""


def _check_all(photos: list[dict[str, Path]], cache: FileCache) -> Iterator[_Verdict]:
    """A verdict per photo, in order, as they are reached."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = [pool.submit(_check_photo, paths, cache) for paths in photos]
        try:
            for future in pending:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_photo(paths: dict[str, Path], cache: FileCache) -> _Verdict:
    try:
        files = {part: _check_file(path, cache) for part, path in paths.items()}
        shown = {part: _as_photo(paths[part], file.size) for part, file in files.items()}
        check_pair_sizes(shown[FRAMES], shown[PHOTOS], shown.get(PHOTO_FRAMES))
        if TRUTHS in files and files[TRUTHS].size != files[PHOTOS].size:
            message = f"the ground truth is {files[TRUTHS].size}, the photo is {files[PHOTOS].size}; they must be equal"
            raise ImageError(paths[TRUTHS], message)
    except OutputError:
        raise  # the cache, not the image
    except (FileError, UsageError) as error:
        return _Verdict(reason=error.message)
    return _Verdict(sha256=photo_set.joint_sha256(file.sha256 for file in files.values()))


def _check_file(path: Path, cache: FileCache) -> CheckedFile:
    found = cache.get(path)
    if found is None:
        size = read_photo(path).size
        found = CheckedFile(hash_file(path).sha256, size)
        cache.put(path, found)
    return found


def _as_photo(path: Path, size: Size) -> Photo:
    """A picture of that size without its memory."""
    return Photo(np.broadcast_to(np.zeros((), np.uint8), (size.height, size.width, 3)), path=path)
