"""Recording what the PyTorch reference computes on a set of photos, under the runtime's conditions."""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from livemoments.errors import ImageError, ResourceError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import Reference, load_reference, model_of, read_configs, read_prompt
from livemoments.reference.layout import CheckpointFiles, locate
from livemoments.reference.own_tiles import default_overlap, default_tile
from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.tiles.plan import TilePlan, plan_balanced
from livemoments.schedule import DEFAULT_STEPS
from livemoments.store.names import check_utf8
from livemoments.types import ReferencePolicy, Size
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.recording.capture import Capture, Wanted
from livemoments.validate.recording.conditions import (
    check_blocks,
    check_detail,
    check_tile,
    exact_arithmetic,
    find_device,
    find_photos,
    hash_checkpoint,
    make_settings,
    select_images,
    sorted_numbers,
    with_schedule,
)
from livemoments.validate.recording.opening import open_recording
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
    RecordingSettings,
    Selection,
    StorageType,
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
    *,
    dtype: StorageType = "float32",
    tile: Size | None = None,
    overlap: int | None = None,
    steps: int = DEFAULT_STEPS,
    policy: str | ReferencePolicy = "per-step",
    seed: int = 0,
    detail: Detail = "stages",
    detail_images: Collection[str] | int | None = 1,
    detail_tiles: Collection[int] | None = (0,),
    detail_steps: Collection[int] | None = None,
    blocks: Collection[int] | None = None,
    limit: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = SILENT,
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
        dtype: what floats are stored as; they are computed in float32 in any case. ``float16`` halves the size and
            rounds by up to 5e-4, relatively.
        tile: size of every tile; both sides are multiples of a token (16 px with upstream's networks). ``None``: what
            the checkpoint was trained for, as an export takes.
        overlap: least overlap of neighbours, pixels; ``None``: likewise.
        steps: Euler steps.
        policy: when ReferenceNet runs.
        seed: of the noise.
        detail: ``stages`` (inputs and outputs of every stage but keys and values), ``keys-values`` (and the motion
            bias), ``blocks`` (what leaves each transformer block), ``modules`` (what leaves every module). Each holds
            those before it.
        detail_images: of how many photos, or of which, more than the stages is recorded; ``None``: of all.
        detail_tiles: likewise of which tiles.
        detail_steps: likewise of which steps.
        blocks: record the modules of these transformer blocks only.
        limit: at most this many photos, spread evenly over the names in order.
        device: where the reference runs: ``cpu``, ``cuda``, ``cuda:1``, …
        overwrite: replace an older recording.
        progress: where to report.

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
    selection = Selection(
        tiles=sorted_numbers(detail_tiles, "tile"),
        steps=sorted_numbers(detail_steps, "step"),
        blocks=sorted_numbers(blocks, "block"),
    )
    if isinstance(photos, LivePhoto):
        check_utf8(photos.name, ImageError)
    files = locate(Path(checkpoint))
    configs = read_configs(files)
    if overlap is None and tile is None:
        overlap = files.overlap
    tile = tile or default_tile(configs, files.tile)
    overlap = default_overlap(configs, (tile,)) if overlap is None else overlap
    settings = make_settings(tile, overlap, steps, policy, seed, selection)
    check_detail(detail, dtype)
    place = find_device(device)
    with write_recording(output, overwrite=overwrite) as writer:  # first: a place that cannot be written is known now
        items = find_photos(photos, limit, progress)
        selection = select_images(selection, detail_images, [item.name for item in items])
        check_blocks(blocks, configs)
        check_tile(tile, configs)
        meta = RecordingMeta(
            schema=RECORDING_SCHEMA,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            producer=_PRODUCER,
            source=hash_checkpoint(files, progress),
            dtype=dtype,
            settings=with_schedule(settings, configs),
            model=model_of(configs, read_prompt(files, configs.transformer), files.flow),
            detail=detail,
            selection=selection,
            images={},
            files={},
        )
        _record_all(files, items, meta, writer, place, progress)
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
    plan = _plan(inputs.size, settings)
    detail = _detail_of(meta, item.name)
    wanted = Wanted(
        detail, meta.selection.tiles, meta.selection.steps, meta.selection.blocks, kv_steps=settings.kv_steps()
    )
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


def _plan(size: Size, settings: RecordingSettings) -> TilePlan:
    return plan_balanced(size, [Size.parse(settings.tile)], settings.overlap, pad_small=True)


def _detail_of(meta: RecordingMeta, name: str) -> Detail:
    chosen = meta.selection.images
    return meta.detail if chosen is None or name in chosen else "stages"


def _key(meta: RecordingMeta, item: LivePhoto[Path]) -> str:
    """Of everything that an image's files depend on."""
    selection = {"tiles": meta.selection.tiles, "steps": meta.selection.steps, "blocks": meta.selection.blocks}
    return condition_key(
        {
            "producer": meta.producer,
            "source": meta.source,
            "dtype": meta.dtype,
            "settings": meta.settings,
            "detail": _detail_of(meta, item.name),
            "selection": selection,
            "image": item.sha256,
            "suffixes": [path and path.suffix for path in (item.frame, item.photo, item.photo_frame, item.truth)],
        }
    )
