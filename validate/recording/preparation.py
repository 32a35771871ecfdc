"""What a recording is made of, looked at before the work begins: photos, checkpoint, device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath

import torch

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.manifest import FileEntry, Source
from livemoments.progress import Progress
from livemoments.reference.layout import CheckpointFiles
from livemoments.runtime.inputs import load_inputs
from livemoments.validate.datasets.index import Dataset, open_dataset
from livemoments.validate.recording.writer import condition_key


def find_photos(
    photos: str | os.PathLike[str] | Dataset | LivePhoto[Path], limit: int | None, progress: Progress
) -> tuple[LivePhoto[Path], ...]:
    """The photos, every one decoded and hashed.

    Raises:
        ImageError: a photo cannot be used.
        UsageError, FileError: a name or the limit cannot be used.
    """
    if isinstance(photos, LivePhoto):
        if PurePath(photos.name).name != photos.name or photos.name.startswith("."):
            raise UsageError(f"a photo cannot be called '{photos.name}'", fix="use a plain file name")
        photos = replace(photos, truth=None)
        load_inputs(photos.frame, photos.photo, photos.photo_frame)  # names what cannot be used before hours of work
        digest = condition_key([hash_file(path).sha256 for path in photos.parts().values()])
        items: tuple[LivePhoto[Path], ...] = (replace(photos, sha256=digest),)
    else:
        dataset = photos if isinstance(photos, Dataset) else open_dataset(photos, limit=limit, progress=progress)
        if dataset.rejected:
            name, reason = dataset.rejected[0]
            raise ImageError(
                dataset.root,
                f"{len(dataset.rejected)} photos cannot be used; the first, '{name}': {reason}",
                fix="replace them or take them out of the set",
            )
        items = dataset.items
    for item in items:
        if "\\" in item.name:  # a path separator where the recording may be read
            raise FileError(item.photo, "has a backslash in its name", fix="rename it")
    return items


def hash_checkpoint(files: CheckpointFiles, progress: Progress) -> Source:
    """The checkpoint's name, and size and SHA-256 of each file, as a bundle's manifest has them."""
    hashes: dict[str, FileEntry] = {}
    walked = list(files.walk())
    with progress.task("Hashing the checkpoint", len(walked)) as task:
        for name, path in walked:
            hashes[name] = hash_file(path)
            task.advance(1, note=name)
    return Source(name=files.root.resolve().name, files=hashes)


def find_device(name: str) -> torch.device:
    """A device that works.

    Raises:
        UsageError: torch does not know it, or cannot use it here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the reference cannot run on '{name}': {reason}", fix="use cpu, or a device that torch has"
        ) from None
    return device


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Float32 that is float32: no TF32 (10 bits of mantissa), which cuDNN's convolutions use unless told otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
