"""Recording what the PyTorch reference computes on a set of photos, under the runtime's conditions."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from livemoments.errors import ImageError, ResourceError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import Reference, load_reference, model_of, read_configs, read_prompt
from livemoments.reference.layout import CheckpointFiles, locate
from livemoments.reference.own_tiles import default_overlap, default_tile
from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.store.names import check_utf8
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.recording.capture import Capture, Wanted
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.options import RecordOptions
from livemoments.validate.recording.preparation import exact_arithmetic, find_device, find_photos, hash_checkpoint
from livemoments.validate.recording.schema import (
    LR,
    RECORDING_SCHEMA,
    REF,
    REF_LR,
    RESULT,
    TRUTH,
    Detail,
    ImageEntry,
    RecordingMeta,
    TileEntry,
)
from livemoments.validate.recording.store import Recording
from livemoments.validate.recording.writer import ImageWriter, RecordingWriter, condition_key, write_recording
from livemoments.validate.reference_photo import restore_like_runtime
from livemoments.version import __version__

_PRODUCER = f"livemoments-deploy {__version__}"


def record(
    checkpoint: str | os.PathLike[str],
    photos: str | os.PathLike[str] | Dataset | LivePhoto[Path],
    output: str | os.PathLike[str],
    options: RecordOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    **fields: Any,
) -> Recording:
    """Run the reference in float32 on every photo, and keep what it computes.

    Conditions are those under which ``livemoments.restore`` runs a bundle of this tile size and overlap by default:
    evenly placed tiles, noise from the seed and the tile's corner, no upstream border and no 8-bit colour fix. Killed
    and started again with the same arguments, it goes on behind the last finished photo and ends with the same files.

    Args:
        checkpoint: a folder in upstream's layout, or an ``inference_config.yml``.
        photos: a folder with ``lr/``, ``ref/`` and perhaps ``ref_lr/`` and ``gt/``, one that is indexed already, or a
            single photo.
        output: the recording's folder.
        options: what to record and how.
        overwrite: replace an older recording.
        progress: where to report.
        fields: in the options' place, the attributes of :class:`livemoments.validate.recording.options.RecordOptions`.

    Returns:
        The recording, opened.

    Raises:
        UsageError: an argument cannot be used, or a tensor is too large for float16.
        CheckpointError: the checkpoint is incomplete or damaged.
        ImageError: a photo cannot be used.
        OutputError: the output exists, or cannot be written.
        EngineError: the reference computed something that is not finite.
        ResourceError: memory or disk ran out.
    """
    if options is not None and fields:
        raise TypeError("give either RecordOptions or their fields as keywords")
    options = options or RecordOptions(**fields)
    options.check()
    if isinstance(photos, LivePhoto):
        check_utf8(photos.name, ImageError)
    files = locate(Path(checkpoint))
    configs = read_configs(files)
    tile = options.tile or default_tile(configs, files.tile)
    overlap = files.overlap if options.overlap is None and options.tile is None else options.overlap
    settings = options.settings(configs, tile, default_overlap(configs, (tile,)) if overlap is None else overlap)
    device = find_device(options.device)
    with write_recording(output, overwrite=overwrite) as writer:  # first: a place that cannot be written is known now
        items = find_photos(photos, options.limit, progress)
        meta = RecordingMeta(
            schema=RECORDING_SCHEMA,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            producer=_PRODUCER,
            source=hash_checkpoint(files, progress),
            dtype=options.dtype,
            settings=settings,
            model=model_of(configs, read_prompt(files, configs.transformer), files.flow),
            detail=options.detail,
            selection=options.selection([item.name for item in items]),
            images={},
            files={},
        )
        _record_all(files, items, meta, writer, device, progress)
        writer.commit(meta)
    return open_recording(output, verify_hashes=False)


def _record_all(
    files: CheckpointFiles,
    items: Sequence[LivePhoto[Path]],
    meta: RecordingMeta,
    writer: RecordingWriter,
    device: torch.device,
    progress: Progress,
) -> None:
    keys = {item.name: _key(meta, item) for item in items}
    finished = writer.take_over(keys)
    missing = [item for item in items if item.name not in finished]
    with progress.task("Recording", len(items)) as task:
        if finished:
            task.advance(len(finished), note=f"{len(finished)} finished earlier")
        if not missing:
            return
        try:
            with exact_arithmetic():
                reference = load_reference(files.root, device=device, progress=progress)
                for item in missing:
                    with writer.image(item.name, meta.dtype) as image:
                        entry = _record_image(reference, item, meta, image, writer.folder, progress)
                        writer.finish(item.name, keys[item.name], entry, image.files)
                    task.advance(1, note=item.name)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ResourceError(
                f"out of memory while the reference ran ({error})", fix="use a smaller --tile, or a larger machine"
            ) from None


def _record_image(
    reference: Reference,
    item: LivePhoto[Path],
    meta: RecordingMeta,
    image: ImageWriter,
    folder: Path,
    progress: Progress,
) -> ImageEntry:
    settings = meta.settings
    inputs = load_inputs(item.frame, item.photo, item.photo_frame)
    plan = plan_balanced(inputs.size, [meta.tile], settings.overlap, pad_small=True)
    detail = _detail_of(meta, item.name)
    wanted = Wanted(detail, meta.selection, settings.kv_steps())
    sources = {LR: item.frame, REF: item.photo, REF_LR: item.photo_frame, TRUTH: item.truth}
    pictures = {role: image.copy(role, path) for role, path in sources.items() if path is not None}
    with Capture(reference, wanted, image.add) as capture:
        restored = restore_like_runtime(
            reference,
            inputs,
            plan,
            steps=settings.steps,
            seed=settings.seed or 0,
            policy=settings.policy,
            observe=capture.observe,
            progress=progress,
        )
    assert capture.result is not None  # the pipeline tells it last
    name = f"images/{RESULT}/{item.name}.png"
    # the profile, for the colours; not the photo's EXIF, which may say where it was taken
    write_image(folder / name, capture.result, icc_profile=inputs.photo.icc_profile or b"")
    pictures[RESULT] = image.take(name)
    tensors = image.close()
    return ImageEntry(
        files=pictures,
        size=str(inputs.size),
        padded=str(plan.padded),
        tiles=tuple(
            TileEntry(y=t.y, x=t.x, height=t.height, width=t.width, ref_y=ref_y, ref_x=ref_x)
            for t, (ref_y, ref_x) in zip(plan.tiles, restored.corners, strict=True)
        ),
        detail=detail,
        tensors=tensors,
    )


def _detail_of(meta: RecordingMeta, name: str) -> Detail:
    chosen = meta.selection.images
    return meta.detail if chosen is None or name in chosen else "stages"


def _key(meta: RecordingMeta, item: LivePhoto[Path]) -> str:
    """A key of everything that an image's files depend on."""
    return condition_key(
        {
            "producer": meta.producer,
            "source": meta.source,
            "dtype": meta.dtype,
            "settings": meta.settings,
            "detail": _detail_of(meta, item.name),
            "selection": msgspec.structs.replace(meta.selection, images=None),
            "image": item.sha256,
            "suffixes": [path and path.suffix for path in (item.frame, item.photo, item.photo_frame, item.truth)],
        }
    )
