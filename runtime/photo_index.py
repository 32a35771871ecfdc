"""The Live Photos of a folder in upstream's layout, every image decoded and hashed once, before any work begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, OutputError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime import upstream_layout
from livemoments.runtime.image_files.photo import Photo, check_pair_sizes, read_photo
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size

_THREADS = 4  # decoding lets go of Python's lock; each thread holds one image


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """What was found in an image file that could be decoded."""

    sha256: str
    size: Size


class Checked(Protocol):
    """What is known of files that were checked before."""

    def get(self, path: Path) -> CheckedFile | None:
        """What was found in this file, if it was not changed since."""

    def put(self, path: Path, found: CheckedFile) -> None:
        """Keep what was found."""


def index_photos(
    folder: str | os.PathLike[str],
    *,
    optional: Sequence[str] = (PHOTO_FRAMES,),
    limit: int | None = None,
    checked: Checked | None = None,
    progress: Progress = SILENT,
) -> tuple[tuple[LivePhoto[Path], ...], dict[str, FileError | UsageError]]:
    """Index a folder; nothing is written into it.

    Args:
        folder: holds ``lr/`` and ``ref/``, and perhaps the optional parts, with the same names in each (suffixes may
            differ).
        optional: parts that may be missing as a whole.
        limit: at most this many photos, spread evenly over the names in order; ``None`` takes all.
        checked: what an earlier call found; those images are not decoded again.
        progress: where to report.

    Returns:
        The photos that can be used, in the order of their names, and why the others cannot, by name.

    Raises:
        ImageError: there is no such folder, a part of it is missing or empty, or names do not match.
        UsageError: the limit is below 1.
        OutputError: what was found cannot be kept.
    """
    upstream_layout.spread((), limit)  # a limit below 1 is refused first
    parts = upstream_layout.list_photos(folder, optional=optional)
    names = upstream_layout.spread(parts[PHOTOS], limit)
    lives: list[LivePhoto[Path]] = []
    rejected: dict[str, FileError | UsageError] = {}
    paths = [{part: files[name] for part, files in parts.items()} for name in names]
    with progress.task("Checking the images", len(names)) as task:
        for name, verdict in zip(names, _check_all(names, paths, checked), strict=True):
            if isinstance(verdict, LivePhoto):
                lives.append(verdict)
            else:
                rejected[name] = verdict
            task.advance(1, note=name)
    return tuple(lives), rejected


def _check_all(
    names: Sequence[str], paths: Sequence[dict[str, Path]], checked: Checked | None
) -> Iterator[LivePhoto[Path] | FileError | UsageError]:
    """A verdict per photo, in order, as they are reached."""
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = [pool.submit(_check_photo, name, files, checked) for name, files in zip(names, paths, strict=True)]
        try:
            for future in pending:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_photo(
    name: str, paths: dict[str, Path], checked: Checked | None
) -> LivePhoto[Path] | FileError | UsageError:
    try:
        files = {part: _check_file(path, checked) for part, path in paths.items()}
        shown = {part: _as_photo(paths[part], file.size) for part, file in files.items()}
        check_pair_sizes(shown[FRAMES], shown[PHOTOS], shown.get(PHOTO_FRAMES))
        if TRUTHS in files and files[TRUTHS].size != files[PHOTOS].size:
            message = f"the ground truth is {files[TRUTHS].size}, the photo is {files[PHOTOS].size}; they must be equal"
            raise ImageError(paths[TRUTHS], message)
    except OutputError:
        raise  # the cache, not the image
    except (FileError, UsageError) as error:
        return error
    sha256 = upstream_layout.joint_sha256(file.sha256 for file in files.values())
    return LivePhoto(paths[FRAMES], paths[PHOTOS], paths.get(PHOTO_FRAMES), paths.get(TRUTHS), name, sha256)


def _check_file(path: Path, checked: Checked | None) -> CheckedFile:
    file = None if checked is None else checked.get(path)
    if file is None:
        size = read_photo(path).size
        file = CheckedFile(hash_file(path).sha256, size)
        if checked is not None:
            checked.put(path, file)
    return file


def _as_photo(path: Path, size: Size) -> Photo:
    """A picture of that size without its memory."""
    return Photo(np.broadcast_to(np.zeros((), np.uint8), (size.height, size.width, 3)), path=path)
