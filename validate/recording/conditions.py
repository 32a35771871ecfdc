"""What a recording is made of, checked before any work begins: photos, checkpoint, settings, device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath

import msgspec
import torch

from livemoments.bundle import hash_file
from livemoments.errors import FileError, ImageError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.manifest import FileEntry, SchedulePoint, Source
from livemoments.progress import Progress
from livemoments.reference.checkpoint import Configs
from livemoments.reference.layout import CheckpointFiles
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.schedule import NOISE_LEVEL, sigma_at, step_indices
from livemoments.types import ReferencePolicy, Size
from livemoments.validate.datasets.index import Dataset, open_dataset
from livemoments.validate.recording.schema import DETAILS, RecordingSettings, Selection
from livemoments.validate.recording.writer import condition_key


def make_settings(
    tile: Size, overlap: int, steps: int, policy: str | ReferencePolicy, seed: int, selection: Selection
) -> RecordingSettings:
    """The settings, checked without the checkpoint, whose schedule comes later.

    Raises:
        UsageError: one of them cannot be used.
    """
    plan_balanced(tile, [tile], overlap)  # the overlap must fit the tile
    step_indices(steps)
    ReferencePolicy.parse(str(policy)).source_steps(steps)
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", fix="use 0 or more")
    if beyond := [step for step in selection.steps or () if step >= steps]:
        raise UsageError(f"step {beyond[0]} is to be recorded, but only 0 to {steps - 1} are sampled")
    return RecordingSettings(
        tile=str(tile),
        overlap=overlap,
        steps=steps,
        policy=str(policy),
        schedule=(),
        noise_level=NOISE_LEVEL,
        seed=seed,
    )


def with_schedule(settings: RecordingSettings, configs: Configs) -> RecordingSettings:
    """The settings with the checkpoint's timesteps."""
    config = configs.schedule
    sigmas = [
        sigma_at(index, shift=config.shift, train_steps=config.num_train_timesteps)
        for index in step_indices(settings.steps)
    ]
    points = tuple(SchedulePoint(timestep=sigma * config.num_train_timesteps, sigma=sigma) for sigma in sigmas)
    return msgspec.structs.replace(settings, schedule=points)


def sorted_numbers(numbers: Collection[int] | None, what: str) -> tuple[int, ...] | None:
    """The numbers, each once, in order.

    Raises:
        UsageError: there is none, or one is negative.
    """
    if numbers is None:
        return None
    if not numbers or min(numbers) < 0:
        raise UsageError(f"which {what}s to record in detail: {sorted(numbers)}", fix=f"give {what} numbers from 0 on")
    return tuple(sorted(set(numbers)))


def check_detail(detail: str, dtype: str) -> None:
    """Refuse unknown levels and types.

    Raises:
        UsageError: naming what there is.
    """
    if detail not in DETAILS:
        raise UsageError(f"there is no detail '{detail}'", fix=f"use {', '.join(DETAILS)}")
    if dtype not in ("float32", "float16"):
        raise UsageError(f"tensors cannot be stored as '{dtype}'", fix="use float32 or float16")


def check_tile(tile: Size, configs: Configs) -> None:
    """Refuse tiles that are not whole tokens of the checkpoint, or more of them than its position table has.

    Raises:
        UsageError: naming what is possible.
    """
    token_px = configs.vae.scale * configs.transformer.patch_size
    largest = token_px * configs.transformer.pos_embed_max_size
    if tile.height % token_px or tile.width % token_px or max(tile.height, tile.width) > largest:
        raise UsageError(
            f"tiles of {tile} pixels are not possible with this checkpoint",
            fix=f"use multiples of {token_px} up to {largest}",
        )


def check_blocks(blocks: Collection[int] | None, configs: Configs) -> None:
    """Refuse blocks that the checkpoint does not have.

    Raises:
        UsageError: naming the first.
    """
    count = configs.transformer.num_layers
    if beyond := [block for block in sorted(blocks or ()) if block >= count]:
        raise UsageError(f"the checkpoint has no block {beyond[0]}; it has blocks 0 to {count - 1}")


def select_images(selection: Selection, images: Collection[str] | int | None, names: Sequence[str]) -> Selection:
    """The selection with the photos of which more than the stages is recorded.

    Raises:
        UsageError: a negative number, or a photo that is not in the set.
    """
    if images is None:
        return selection
    if isinstance(images, int):
        if images < 0:
            raise UsageError(f"{images} photos in detail are not possible", fix="use 0 or more")
        return msgspec.structs.replace(selection, images=tuple(names[:images]))
    if unknown := sorted(set(images) - set(names)):
        raise UsageError(f"there is no photo '{unknown[0]}' in the set")
    return msgspec.structs.replace(selection, images=tuple(sorted(images)))


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
        paths = [path for path in (photos.frame, photos.photo, photos.photo_frame) if path is not None]
        load_inputs(photos.frame, photos.photo, photos.photo_frame)  # names what cannot be used before hours of work
        digest = condition_key([hash_file(path).sha256 for path in paths])
        items: tuple[LivePhoto[Path], ...] = (
            LivePhoto(photos.frame, photos.photo, photos.photo_frame, name=photos.name, sha256=digest),
        )
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
    found: dict[str, FileEntry] = {}
    walked = list(files.walk())
    with progress.task("Hashing the checkpoint", len(walked)) as task:
        for name, path in walked:
            found[name] = hash_file(path)
            task.advance(1, note=name)
    return Source(name=files.root.resolve().name, files=found)


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
