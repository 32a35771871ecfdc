"""Restore a photo: the whole path from three image files to one, with a bundle's engines and without PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import ResourceError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress, Task
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.color import color_fix_rows, to_unit_range
from livemoments.runtime.engine_pool import EnginePool, Timings
from livemoments.runtime.fallback import is_memory, take_less
from livemoments.runtime.flow import FlowEstimator, FlowOfTile, flow_estimator
from livemoments.runtime.image_files.photo import ensure_writable, write_image
from livemoments.runtime.inputs import ImageSource, RestoreInputs, load_inputs
from livemoments.runtime.keys_values.codecs import find_codec
from livemoments.runtime.keys_values.content_cache import CacheUse, KvCache
from livemoments.runtime.keys_values.step_store import open_store
from livemoments.runtime.live_file import LiveFile
from livemoments.runtime.noise import NoiseSource
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restoration import Restoration, describe, plan_tiles
from livemoments.runtime.sampler import Observer, PhaseSplitSampler, ResidentSampler, Sampler
from livemoments.runtime.tiles.batch import OrderedBlender, TileCodec, photo_flow, reference_corners
from livemoments.runtime.tiles.blend import Blender
from livemoments.runtime.tiles.correspondence import MeanFlow, ReferenceCorner
from livemoments.runtime.tiles.plan import TilePlan
from livemoments.types import Size, Stage, Tile
from livemoments.version import __version__


@dataclass(frozen=True)
class RestoreResult:
    """What came out.

    Attributes:
        image: (H, W, 3) uint8 or uint16 RGB.
        metadata: how it was made; JSON-able, also written into the file.
        timings: wall time of the stages and tiles.
        output: the file that was written, if any.
        plan: the tiles.
        corners: of each tile of the plan, the mean flow inside it and where its reference tile lies.
        cache: how often keys and values were found; ``None`` without a cache. Not in the metadata, which say how the
            picture was made: it is the same either way.
    """

    image: np.ndarray
    metadata: dict[str, Any]
    timings: Timings
    output: Path | None
    plan: TilePlan
    corners: tuple[tuple[MeanFlow, ReferenceCorner], ...]
    cache: CacheUse | None = None


@overload
def restore(
    bundle: Bundle | str | os.PathLike[str],
    live: LivePhoto[ImageSource],
    options: RestoreOptions | None = None,
    /,
    *,
    output: str | os.PathLike[str] | None = None,
    noise: NoiseSource | None = None,
    tile_flow: FlowOfTile | None = None,
    observer: Observer | None = None,
    progress: Progress = SILENT,
    upscaled_size: Size | None = None,
    backend: Backend | None = None,
    live_file: LiveFile | None = None,
) -> RestoreResult: ...


@overload
def restore(
    bundle: Bundle | str | os.PathLike[str],
    frame: ImageSource,
    photo: ImageSource,
    photo_frame: ImageSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    noise: NoiseSource | None = None,
    tile_flow: FlowOfTile | None = None,
    observer: Observer | None = None,
    progress: Progress = SILENT,
    upscaled_size: Size | None = None,
    backend: Backend | None = None,
    live_file: LiveFile | None = None,
    **options: Any,
) -> RestoreResult: ...


def restore(
    bundle: Bundle | str | os.PathLike[str],
    frame: Any,
    photo: Any = None,
    photo_frame: ImageSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    noise: NoiseSource | None = None,
    tile_flow: FlowOfTile | None = None,
    observer: Observer | None = None,
    progress: Progress = SILENT,
    upscaled_size: Size | None = None,
    backend: Backend | None = None,
    live_file: LiveFile | None = None,
    **options: Any,
) -> RestoreResult:
    """Restore a video frame to the quality of its key photo.

    Called with the images and keywords, ``restore(bundle, frame, photo, steps=3)``, or with a Live Photo and options,
    ``restore(bundle, LivePhoto(frame, photo), RestoreOptions(steps=3))``.

    Args:
        bundle: an opened bundle, or its folder (opened with every hash checked).
        frame: the reselected video frame: a file, or a :class:`Photo`; converted to the photo's colour profile. Or a
            :class:`livemoments.live_photo.LivePhoto`, with :class:`RestoreOptions` in the photo's place.
        photo: the key photo; the result has its size, colour profile and metadata.
        photo_frame: the video frame at the photo's instant; derived from the photo if missing.
        output: the file to write; checked before the work begins.
        noise: replaces the seeded noise, for parity with a recording.
        tile_flow: replaces the flow of tiles, for the same; the estimated one is what ``observer`` gets.
        observer: called with the name and value of every intermediate tensor.
        progress: where progress is shown.
        upscaled_size: the result's size where it is not the photo's.
        backend: replaces the options' provider and threads.
        live_file: what is written around the picture of a Live Photo.
        options: the attributes of :class:`livemoments.runtime.options.RestoreOptions`.

    Raises:
        UsageError: an option cannot be used.
        ImageError: an image cannot be read, or they do not fit each other.
        BundleError: the bundle cannot be trusted, or lacks a graph.
        OutputError: the output cannot be written.
        EngineError: an engine failed.
        ResourceError: memory or disk ran out.
    """
    if isinstance(frame, LivePhoto):
        if options or photo_frame is not None:
            raise TypeError("a Live Photo is restored with RestoreOptions, not with keywords")
        live, chosen = frame, photo or RestoreOptions()
    else:
        live, chosen = LivePhoto(frame, photo, photo_frame), RestoreOptions(**options)
    around = live_file or LiveFile()
    chosen.check(output)
    if output is not None:
        ensure_writable(output)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    run = Restoration.of(opened, chosen, noise=noise, observer=observer, tile_flow=tile_flow, progress=progress)
    with run.timings.measure("read"):
        inputs = load_inputs(
            live.frame,
            live.photo,
            live.photo_frame,
            upscaled_size=upscaled_size,
            match_profiles=not run.like_upstream,
        )
    plan = plan_tiles(run, inputs.size)
    reopens = backend is None
    backend = backend or chosen.open_backend(opened)
    done = restore_tiles(run, inputs, plan, backend, reopens=reopens)
    blender, corners, run = done.blender, done.corners, done.run
    depth = chosen.bit_depth or (8 if run.like_upstream else inputs.photo.bit_depth)
    image = _finish(run, inputs, blender, depth)
    metadata: dict[str, Any] = {
        "package": f"livemoments-deploy {__version__}",
        "seed": None if noise is not None else chosen.seed,
        "provider": f"{backend.name}:{backend.provider}",
        **describe(run, inputs, plan, corners),
        **({"origin": dict(around.origin)} if around.origin else {}),
    }
    if run.remarks:
        metadata["engine_remarks"] = list(run.remarks)
    if backend.peak_device_bytes is not None:
        metadata["peak_device_bytes"] = backend.peak_device_bytes
    if done.fallbacks:
        metadata["memory_fallbacks"] = list(done.fallbacks)
    if output is not None:
        with run.timings.measure("write"):
            text = {"Software": metadata["package"], "livemoments": json.dumps(metadata)}
            lost = write_image(
                output,
                image,
                like=inputs.photo,
                quality=chosen.quality,
                text=text,
                trailer=around.trailer,
                gain_map=around.gain_map,
                keeps_video_claims=around.keeps_video_claims,
            )
        metadata["not_carried_over"] = list(lost)
    written = None if output is None else Path(output)
    cache = None if done.cache is None else done.cache.use
    return RestoreResult(image, metadata, run.timings, written, plan, tuple(corners), cache)


@dataclass(frozen=True)
class RestoredTiles:
    """Everything up to the blended picture, before the colour fix.

    Attributes:
        blender: holds it.
        corners: of each tile of the plan, the mean flow inside it and where its reference tile lies.
        run: as it ended: with other options than it began if memory ran out.
        fallbacks: what was changed for that, in words, in order.
        cache: what it says of itself.
    """

    blender: Blender
    corners: list[tuple[MeanFlow, ReferenceCorner]]
    run: Restoration
    fallbacks: tuple[str, ...] = ()
    cache: KvCache | None = None


def restore_tiles(
    run: Restoration, inputs: RestoreInputs, plan: TilePlan, backend: Backend, *, reopens: bool = False
) -> RestoredTiles:
    """Restore every tile. If memory runs out, what is done stays, and the rest goes on in a way that takes less.

    Args:
        run: what is restored, and how.
        inputs: the images.
        plan: the tiles.
        backend: opens the engines.
        reopens: the options may open another back-end in its place: one that streams.

    Raises:
        ResourceError: memory ran out in the way that takes the least, or before the first tile; or the disk is full.
        EngineError: an engine failed.
    """
    blender = Blender(inputs.size, compat_upstream=run.like_upstream)
    ordered = OrderedBlender(blender)
    state = _Progressed(list(plan.tiles), _open_cache(run.options))
    fallbacks: list[str] = []
    while True:
        failure = _attempt(run, inputs, plan, backend, ordered, state)
        if failure is None:
            break
        less = take_less(run.options, streams=reopens and run.options.can_stream(run.bundle))
        if less is None or state.corners is None:
            raise failure
        options, words = less
        fallbacks.append(words)
        run.progress.say(f"memory ran out after {len(plan.tiles) - len(state.left)} tiles; going on: {words}")
        if options.residency != run.options.residency and options.residency == "streamed":
            backend = options.open_backend(run.bundle)
        run = replace(run, options=options)
    assert state.corners is not None
    corners = [state.corners[tile.index] for tile in plan.tiles]
    return RestoredTiles(blender, corners, run, tuple(fallbacks), state.cache)


@dataclass
class _Progressed:
    """What attempts share: the tiles that are left, the cache, and what the photo's flow says, once it is known."""

    left: list[Tile]
    cache: KvCache | None
    corners: dict[int, tuple[MeanFlow, ReferenceCorner]] | None = None


def _open_cache(options: RestoreOptions) -> KvCache | None:
    if options.kv_cache is None:
        return None
    return KvCache(options.kv_cache, find_codec(options.kv_dtype), budget_bytes=options.kv_cache_budget_bytes)


def _attempt(
    run: Restoration,
    inputs: RestoreInputs,
    plan: TilePlan,
    backend: Backend,
    ordered: OrderedBlender,
    state: _Progressed,
) -> Exception | None:
    """Restore the tiles that are left; the error if memory ran out, without the frames that hold tensors."""
    try:
        _restore_left(run, inputs, plan, backend, ordered, state)
    except Exception as error:
        if not is_memory(error):
            raise
        if isinstance(error, ResourceError):
            return ResourceError(error.message, fix=error.fix, of_memory=True)
        return MemoryError(*error.args)
    return None


def _restore_left(
    run: Restoration,
    inputs: RestoreInputs,
    plan: TilePlan,
    backend: Backend,
    ordered: OrderedBlender,
    state: _Progressed,
) -> None:
    cache = state.cache
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(
            EnginePool(run.bundle, backend, plan.tile, run.timings, one_phase=run.one_phase, remark=run.remark)
        )
        sampler = _make_sampler(run, pool, cache, stack)
        per_group = run.options.batch * sampler.batches_per_group(run.options.batch)
        flow = flow_estimator(run.flow, pool)
        if state.corners is None:
            state.corners = _photo_corners(run, inputs, plan, flow)
        cut_at = {index: corner for index, (_, corner) in state.corners.items()}
        codec = TileCodec(
            pool,
            inputs,
            cut_at,
            run.noise,
            flow,
            vae_window=run.options.vae_tile,
            tile_flow=run.tile_flow,
            use_cache=cache is not None,
            observer=run.observer,
        )
        tiles = tuple(state.left)
        with run.progress.task("Restoring tiles", len(tiles) * sampler.steps) as task:
            for group, is_last in _grouped(tiles, per_group):
                with run.timings.measure_group(len(group)):
                    _restore_group(run, group, is_last, codec, sampler, pool, ordered, task, state)


def _photo_corners(
    run: Restoration, inputs: RestoreInputs, plan: TilePlan, flow: FlowEstimator
) -> dict[int, tuple[MeanFlow, ReferenceCorner]]:
    """Flow between the video frames, and by it where every tile's reference lies."""
    with run.progress.task("Flow between the video frames"), run.timings.measure("photo_flow"):
        flow_lr = photo_flow(flow, inputs)
    corners = reference_corners(flow_lr, inputs, plan, follow=not run.options.no_pcr, grid_px=run.options.pcr_grid)
    _observe(run, "photo.flow_lr", flow_lr)
    _observe(run, "ref_patch_coords", np.array([(c.y, c.x) for _, (_, c) in sorted(corners.items())]))
    return corners


def _restore_group(
    run: Restoration,
    tiles: Sequence[Tile],
    is_last: bool,
    codec: TileCodec,
    sampler: Sampler,
    pool: EnginePool,
    blender: OrderedBlender,
    task: Task,
    state: _Progressed,
) -> None:
    batches = [codec.encode(part) for part, _ in _grouped(tiles, run.options.batch)]
    if is_last:  # each engine goes when nothing needs it any more
        pool.close(Stage.FLOW, Stage.VAE_ENCODER)
    latents = sampler.sample(batches, task)
    if is_last:
        pool.close(Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION)
    for batch, z in zip(batches, latents, strict=True):
        for tile, image in codec.decode(batch, z):
            blender.add(tile, image)
            state.left.remove(tile)


def _make_sampler(run: Restoration, pool: EnginePool, cache: KvCache | None, stack: contextlib.ExitStack) -> Sampler:
    schedule = run.bundle.manifest.schedule
    if run.policy.name != "phase-split" and not run.one_phase:
        return ResidentSampler(pool, schedule, run.steps, run.policy, cache=cache, observer=run.observer)
    store = stack.enter_context(
        open_store(run.options.kv_store, codec=run.options.kv_dtype, budget_bytes=run.options.kv_budget_bytes)
    )
    return PhaseSplitSampler(
        pool,
        schedule,
        run.steps,
        run.policy,
        store=store,
        budget_bytes=run.options.kv_budget_bytes,
        cache=cache,
        observer=run.observer,
    )


def _finish(run: Restoration, inputs: RestoreInputs, blender: Blender, bit_depth: int) -> np.ndarray:
    """Colour fix in strips, and the final integers: (H, W, 3) uint8 or uint16."""
    size = inputs.size

    def content_rows(y0: int, y1: int) -> np.ndarray:
        return to_unit_range(blender.result_rows(y0, y1))

    def style_rows(y0: int, y1: int) -> np.ndarray:
        return inputs.frame_view.window(y0, 0, y1 - y0, size.width)

    if run.observer is not None:
        stitched = blender.result_rows(0, size.height)
        _observe(run, "photo.stitched", stitched.transpose(2, 0, 1)[None])
        _observe(run, "photo.before_color_fix", to_integers(to_unit_range(stitched), 8))
    image = np.empty((size.height, size.width, 3), np.uint8 if bit_depth == 8 else np.uint16)
    with run.progress.task("Colour fix", size.height) as task, run.timings.measure("color_fix"):
        for y0, rows in color_fix_rows(content_rows, style_rows, size, compat_upstream=run.like_upstream):
            image[y0 : y0 + len(rows)] = to_integers(rows, bit_depth)
            task.advance(len(rows))
    _observe(run, "photo.result", image)
    return image


def to_integers(unit: np.ndarray, bit_depth: int) -> np.ndarray:
    """[0, 1] -> uint8 or uint16, rounded to the nearest."""
    top = np.float32((1 << bit_depth) - 1)
    return np.rint(np.clip(unit, 0, 1) * top).astype(np.uint8 if bit_depth == 8 else np.uint16)


def _grouped(tiles: Sequence[Tile], size: int) -> Iterator[tuple[Sequence[Tile], bool]]:
    """Runs of ``size`` tiles (the last may be shorter), and whether each is the last."""
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size], start + size >= len(tiles)


def _observe(run: Restoration, name: str, value: np.ndarray) -> None:
    if run.observer is not None:
        run.observer(name, value)
