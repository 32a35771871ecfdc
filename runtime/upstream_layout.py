"""Folders in upstream's layout: ``lr/``, ``ref/``, ``ref_lr/`` and ``gt/`` with the same names in each."""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from livemoments.errors import ImageError, UsageError
from livemoments.runtime.image_files.integrity import container
from livemoments.store.names import check_utf8

FRAMES, PHOTOS, PHOTO_FRAMES, TRUTHS = "lr", "ref", "ref_lr", "gt"
"""Upstream's names: reselected video frames, key photos, video frames at the key photos' instants, ground truth."""
_LAYOUT_FIX = "name a folder with lr/ (video frames), ref/ (key photos) and, if you have them, ref_lr/ (key frames)"
_MOST_NAMED = 5
READABLE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".tif", ".tiff", ".webp"),
    *(".heic", ".heif", ".hif"),  # with pillow-heif
)
"""Suffixes, in any case, of the files that :func:`livemoments.runtime.image_files.photo.read_photo` reads."""
_OTHER_PICTURES = (
    *(".avif", ".jxl", ".jp2", ".bmp", ".gif", ".psd", ".exr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf"),
)
"""Suffixes of pictures that it does not read: they are named, not passed over."""
_HEAD_BYTES = 64


def is_picture(path: Path) -> bool:
    """Whether a file is meant as a picture: by its suffix, in any case, else by its first bytes. Sidecars
    (``x.png.json``), ``Thumbs.db`` and the like are not; a link to nothing with a picture's suffix is.
    """
    if path.suffix.lower() in (*READABLE_SUFFIXES, *_OTHER_PICTURES):
        return path.is_file() or is_broken_link(path)
    if not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return container(stream.read(_HEAD_BYTES)) is not None
    return False


def is_broken_link(path: Path) -> bool:
    """Whether a path is a link whose target is not there."""
    return path.is_symlink() and not path.exists()


def list_photos(
    folder: str | os.PathLike[str], *, optional: Sequence[str] = (PHOTO_FRAMES,)
) -> dict[str, dict[str, Path]]:
    """The files of a folder in upstream's layout, by part and by name; nothing is opened.

    Args:
        folder: holds ``lr/`` and ``ref/``, and perhaps the optional parts, with the same names in each (suffixes may
            differ).
        optional: parts that may be missing as a whole.

    Returns:
        For each part that is there its pictures by name without suffix, in the order of names. Names are in Unicode's
        composed form (NFC), as ``ü`` of one system's files is the ``u`` with dots of another's (NFD).

    Raises:
        ImageError: there is no such folder, a part of it is missing or empty, or names do not match.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ImageError(folder, "no such folder", fix=_LAYOUT_FIX)
    parts = {part: _files(root, part) for part in (FRAMES, PHOTOS)}
    parts |= {part: _files(root, part) for part in optional if (root / part).exists()}
    everywhere = set.union(*(set(files) for files in parts.values()))
    missing = [f"{part}/{name}" for part, files in parts.items() for name in sorted(everywhere - set(files))]
    if missing:
        raise ImageError(
            root,
            f"the folders do not hold the same names; there is no {listed(missing)}",
            fix="give the images of one photo the same name in each folder, and remove the rest",
        )
    return parts


def _files(root: Path, part: str) -> dict[str, Path]:
    folder = root / part
    if not folder.is_dir():
        raise ImageError(root, f"there is no folder '{part}' in it", fix=_LAYOUT_FIX)
    try:
        present = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        pictures = [path for path in present if is_picture(path)]
    except OSError as error:
        raise ImageError(folder, f"cannot be read ({error.strerror})", fix="check its permissions") from None
    if not pictures:
        others = f", only {listed([path.name for path in present])}" if present else ""
        raise ImageError(folder, f"holds no images{others}", fix=_LAYOUT_FIX)
    files: dict[str, Path] = {}
    for path in pictures:
        check_utf8(path, ImageError)
        if is_broken_link(path):
            raise ImageError(path, "is a link to nothing", fix="mend or remove the link")
        if (other := files.setdefault(unicodedata.normalize("NFC", path.stem), path)) is not path:
            raise ImageError(folder, f"{other.name} and {path.name} have one name", fix="keep one of them")
    return dict(sorted(files.items()))


def spread(names: Iterable[str], limit: int | None) -> list[str]:
    """The names in order, or ``limit`` of them, spread evenly.

    Raises:
        UsageError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} photos leaves none", fix="use 1 or more")
    ordered = sorted(names)
    if limit is None or limit >= len(ordered):
        return ordered
    return [ordered[number * len(ordered) // limit] for number in range(limit)]


def joint_sha256(digests: Iterable[str]) -> str:
    """SHA-256 of several files: of their SHA-256s, a line each."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def set_sha256(digests: Mapping[str, str]) -> str:
    """SHA-256 of a set: its photos' names and SHA-256s, in order."""
    return joint_sha256(f"{name}:{digest}" for name, digest in digests.items())


def listed(names: Sequence[str]) -> str:
    """The first few names with commas between them, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
