"""The trained checkpoints that come with the package: small enough to be stored, and honest about what they are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from livemoments.errors import CheckpointError
from livemoments.store.errors import output_errors
from livemoments.store.folders import StagedFolder, check_destination, stage_folder

NAMES = ("small",)
CARD_NAME = "README.md"


def trained_checkpoint(name: str = "small") -> Path:
    """The folder of a trained checkpoint, in upstream's layout, read-only. Its model card is ``README.md``.

    Raises:
        CheckpointError: this installation has none of that name.
    """
    folder = Path(__file__).parent / name
    if name not in NAMES or not (folder / CARD_NAME).is_file():
        raise CheckpointError(folder, "no such trained checkpoint here", fix=f"use {' or '.join(NAMES)}")
    return folder


def trained_bundle(name: str = "small") -> Path:
    """The folder of a bundle that was exported from a trained checkpoint: fp32, for onnxruntime, of its own tile size.
    ``tools/make_small_engines.py`` makes it.

    Raises:
        CheckpointError: this installation has none of that name.
    """
    return _engines(name, "bundle")


def trained_recording(name: str = "small") -> Path:
    """The folder of what the PyTorch reference computes with a trained checkpoint on a picture of two tiles, with which
    :func:`trained_bundle` is validated where there is no PyTorch. ``tools/make_small_engines.py`` makes it.

    Raises:
        CheckpointError: this installation has none of that name.
    """
    return _engines(name, "recording")


def _engines(name: str, part: str) -> Path:
    folder = Path(__file__).parent / f"{name}_engines" / part
    if name not in NAMES or not folder.is_dir():
        raise CheckpointError(folder, f"no such trained {part} here", fix=f"use {' or '.join(NAMES)}")
    return folder


def copy_trained_checkpoint(folder: str | os.PathLike[str], name: str = "small", *, overwrite: bool = False) -> Path:
    """Copy a trained checkpoint, with its model card, whole or not at all.

    Args:
        folder: where to; must not exist, or be empty.
        name: which.
        overwrite: replace an earlier copy.

    Returns:
        The folder.

    Raises:
        CheckpointError: this installation has none of that name.
        OutputError: the folder exists and is not such a copy, or cannot be written.
    """
    source = trained_checkpoint(name)

    def is_copy(there: Path) -> bool:
        return _title(there) == _title(source)

    target = check_destination(folder, is_ours=is_copy, kind="a copy of it", overwrite=overwrite)
    with output_errors(target), stage_folder(target) as staged:
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            place = staged / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)  # its contents only: who may read the copy is the umask's to say
        StagedFolder(target, staged, overwrite=overwrite, is_ours=is_copy).publish()
    return Path(folder)


def _title(folder: Path) -> str | None:
    """The first line of a checkpoint's model card, which names it; ``None`` without one."""
    card = folder / CARD_NAME
    if not card.is_file():
        return None
    return card.read_text("utf-8", errors="replace").partition("\n")[0]
