"""Restore a photo: the whole path from three image files to one, with a bundle's engines and without PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from livemoments.bundle import Bundle
from livemoments.progress import SILENT, Progress, Task
from livemoments.runtime.align import MeanFlow, ReferenceCorner
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.blend import Blender
from livemoments.runtime.color import color_fix_rows, to_unit_range
from livemoments.runtime.engine_pool import EnginePool, Timings
from livemoments.runtime.flow import FlowKind, FlowOfTile, flow_estimator, resolve_flow
from livemoments.runtime.images import ensure_writable, write_image
from livemoments.runtime.inputs import ImageSource, RestoreInputs, load_inputs
from livemoments.runtime.kv_cache import KvCache
from livemoments.runtime.kv_codecs import find_codec
from livemoments.runtime.kv_store import open_store
from livemoments.runtime.noise import NoiseSource, SeededNoise
from livemoments.runtime.sampler import Observer, PhaseSplitSampler, ResidentSampler, Sampler
from livemoments.runtime.schedule import plan_steps
from livemoments.runtime.settings import Settings, check_arguments, describe, plan_tiles
from livemoments.runtime.tile_batch import OrderedBlender, TileCodec, photo_flow, reference_corners
from livemoments.runtime.tiles import TilePlan
from livemoments.types import ReferencePolicy, Size, Stage, Tile
from livemoments.version import __version__

KV_BUDGET_BYTES = 4 << 30
"""Default for phase-split's keys and values: one full-size 1024-pixel tile in float16, six steps (3.7 GiB)."""


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
    """

    image: np.ndarray
    metadata: dict[str, Any]
    timings: Timings
    output: Path | None
    plan: TilePlan
    corners: tuple[tuple[MeanFlow, ReferenceCorner], ...]


def restore(
    bundle: Bundle | str | os.PathLike[str],
    frame: ImageSource,
    photo: ImageSource,
    photo_frame: ImageSource | None = None,
    output: str | os.PathLike[str] | None = None,
    *,
    steps: int | None = None,
    seed: int = 0,
    compat: Literal["upstream"] | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    reference: str | ReferencePolicy | None = None,
    flow: FlowKind | None = None,
    tile_plan: Literal["balanced", "upstream"] | None = None,
    tile: Size | None = None,
    batch: int = 1,
    pad_small: bool = False,
    no_pcr: bool = False,
    kv_store: Literal["host", "disk"] = "host",
    kv_dtype: str = "native",
    kv_budget_bytes: int = KV_BUDGET_BYTES,
    kv_cache: str | os.PathLike[str] | None = None,
    bit_depth: int | None = None,
    quality: int = 95,
    noise: NoiseSource | None = None,
    tile_flow: FlowOfTile | None = None,
    observer: Observer | None = None,
    progress: Progress = SILENT,
    upscaled_size: Size | None = None,
    backend: Backend | None = None,
) -> RestoreResult:
    """Restore a video frame to the quality of its key photo.

    Args:
        bundle: an opened bundle, or its folder (opened with every hash checked).
        frame: the reselected video frame: a file, or a :class:`Photo`; converted to the photo's colour profile.
        photo: the key photo; the result has its size, colour profile and metadata.
        photo_frame: the video frame at the photo's instant; derived from the photo if missing.
        output: the file to write; checked before the work begins.
        steps: sampling steps; the bundle's default if not given.
        seed: of the noise; the same seed gives the same picture for any tile order and batch size.
        compat: ``upstream`` reproduces upstream's tiling, grey border and 8-bit colour fix, and ignores profiles.
        provider: what runs the graphs (:class:`OrtBackend`).
        threads: threads within an operator.
        reference: when ReferenceNet runs; the bundle's policy if not given.
        flow: ``engine`` (RAFT) or ``dis`` (OpenCV); if not given, the engine of a bundle whose checkpoint has RAFT,
            and ``dis`` with all others.
        tile_plan: ``balanced``, or ``upstream``'s padding to whole strides.
        tile: use this tile size of the bundle only.
        batch: tiles computed at once.
        pad_small: reflect photos that are smaller than every tile.
        no_pcr: cut every reference tile at its tile's own place (an ablation of PCR).
        kv_store: where ``phase-split`` keeps keys and values.
        kv_dtype: how stored keys and values are kept: ``native``, ``float16``, ``int8`` or ``fp8``.
        kv_budget_bytes: how much of them may be stored at once.
        kv_cache: a folder in which keys and values outlive the run, found again by content.
        bit_depth: 8 or 16; the photo's if not given.
        quality: of JPEG and WebP files, 1 to 100.
        noise: replaces the seeded noise, for parity with a recording.
        tile_flow: replaces the flow of tiles, likewise; the estimated one is what ``observer`` gets.
        observer: called with the name and value of every intermediate tensor.
        progress: where progress is shown.
        upscaled_size: the result's size where it is not the photo's.
        backend: replaces :class:`OrtBackend`.

    Raises:
        UsageError: an argument cannot be used.
        ImageError: an image cannot be read, or they do not fit each other.
        BundleError: the bundle cannot be trusted, or lacks a graph.
        OutputError: the output cannot be written.
        EngineError: an engine failed.
        ResourceError: memory or disk ran out.
    """
    check_arguments(
        batch=batch,
        kv_budget_bytes=kv_budget_bytes,
        quality=quality,
        bit_depth=bit_depth,
        compat=compat,
        output=output,
    )
    if output is not None:
        ensure_writable(output)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    settings = Settings(
        bundle=opened,
        compat=compat == "upstream",
        steps=plan_steps(manifest.schedule, steps),
        policy=ReferencePolicy.parse(str(reference or manifest.reference_policy)),
        flow=resolve_flow(flow, opened),
        tile_plan=tile_plan or ("upstream" if compat else "balanced"),
        tile=tile,
        batch=batch,
        pad_small=pad_small,
        no_pcr=no_pcr,
        kv_store=kv_store,
        kv_dtype=kv_dtype,
        kv_budget_bytes=kv_budget_bytes,
        kv_cache=kv_cache,
        noise=noise or SeededNoise(seed),
        observer=observer,
        progress=progress,
        tile_flow=tile_flow,
    )
    with settings.timings.measure("read"):
        inputs = load_inputs(frame, photo, photo_frame, upscaled_size=upscaled_size, match_profiles=not settings.compat)
    plan = plan_tiles(settings, inputs.size)
    if backend is None:
        from livemoments.runtime.backends.ort import OrtBackend

        backend = OrtBackend(provider, threads)
    blender, corners = _restore_tiles(settings, inputs, plan, backend)
    depth = bit_depth or (8 if settings.compat else inputs.photo.bit_depth)
    image = _finish(settings, inputs, blender, depth)
    metadata: dict[str, Any] = {
        "package": f"livemoments-deploy {__version__}",
        "seed": None if noise is not None else seed,
        "provider": f"{backend.name}:{backend.provider}",
        **describe(settings, inputs, plan, corners),
    }
    if output is not None:
        with settings.timings.measure("write"):
            text = {"Software": metadata["package"], "livemoments": json.dumps(metadata)}
            lost = write_image(output, image, like=inputs.photo, quality=quality, text=text)
        metadata["not_carried_over"] = list(lost)
    written = None if output is None else Path(output)
    return RestoreResult(image, metadata, settings.timings, written, plan, tuple(corners))


def _restore_tiles(
    settings: Settings, inputs: RestoreInputs, plan: TilePlan, backend: Backend
) -> tuple[Blender, list[tuple[MeanFlow, ReferenceCorner]]]:
    blender = Blender(inputs.size, compat_upstream=settings.compat)
    ordered = OrderedBlender(blender)
    cache = None if settings.kv_cache is None else KvCache(settings.kv_cache, find_codec(settings.kv_dtype))
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(EnginePool(settings.bundle, backend, plan.tile, settings.timings))
        sampler = _make_sampler(settings, pool, cache, stack)
        per_group = settings.batch * sampler.batches_per_group(settings.batch)
        flow = flow_estimator(settings.flow, pool)
        with settings.progress.task("Flow between the video frames"), settings.timings.measure("photo_flow"):
            flow_lr = photo_flow(flow, inputs)
        corners = reference_corners(flow_lr, inputs, plan, follow=not settings.no_pcr)
        found = {index: corner for index, (_, corner) in corners.items()}
        _observe(settings, "photo.flow_lr", flow_lr)
        _observe(settings, "ref_patch_coords", np.array([(c.y, c.x) for _, c in sorted(found.items())]))
        codec = TileCodec(
            pool,
            inputs,
            found,
            settings.noise,
            flow,
            tile_flow=settings.tile_flow,
            use_cache=cache is not None,
            observer=settings.observer,
        )
        total = len(plan.tiles) * sampler.steps
        with settings.progress.task("Restoring tiles", total) as task:
            for group, is_last in _grouped(plan.tiles, per_group):
                _restore_group(settings, group, is_last, codec, sampler, pool, ordered, task)
    return blender, [corners[tile.index] for tile in plan.tiles]


def _restore_group(
    settings: Settings,
    tiles: Sequence[Tile],
    is_last: bool,
    codec: TileCodec,
    sampler: Sampler,
    pool: EnginePool,
    blender: OrderedBlender,
    task: Task,
) -> None:
    start_s = time.perf_counter()
    batches = [codec.encode(part) for part, _ in _grouped(tiles, settings.batch)]
    if is_last:  # each engine goes when nothing needs it any more
        pool.close(Stage.FLOW, Stage.VAE_ENCODER)
    latents = sampler.sample(batches, task)
    if is_last:
        pool.close(Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION)
    for batch, z in zip(batches, latents, strict=True):
        for tile, image in codec.decode(batch, z):
            blender.add(tile, image)
    elapsed_s = time.perf_counter() - start_s
    settings.timings.tile_seconds.extend([elapsed_s / len(tiles)] * len(tiles))


def _make_sampler(settings: Settings, pool: EnginePool, cache: KvCache | None, stack: contextlib.ExitStack) -> Sampler:
    schedule = settings.bundle.manifest.schedule
    if settings.policy.name != "phase-split":
        return ResidentSampler(pool, schedule, settings.steps, settings.policy, cache=cache, observer=settings.observer)
    store = stack.enter_context(
        open_store(settings.kv_store, codec=settings.kv_dtype, budget_bytes=settings.kv_budget_bytes)
    )
    return PhaseSplitSampler(
        pool,
        schedule,
        settings.steps,
        settings.policy,
        store=store,
        budget_bytes=settings.kv_budget_bytes,
        cache=cache,
        observer=settings.observer,
    )


def _finish(settings: Settings, inputs: RestoreInputs, blender: Blender, bit_depth: int) -> np.ndarray:
    """Colour fix in strips, and the final integers: (H, W, 3) uint8 or uint16."""
    size = inputs.size

    def content_rows(y0: int, y1: int) -> np.ndarray:
        return to_unit_range(blender.result_rows(y0, y1))

    def style_rows(y0: int, y1: int) -> np.ndarray:
        return inputs.frame_view.window(y0, 0, y1 - y0, size.width)

    if settings.observer is not None:
        stitched = blender.result_rows(0, size.height)
        _observe(settings, "photo.stitched", stitched.transpose(2, 0, 1)[None])
        _observe(settings, "photo.before_color_fix", to_integers(to_unit_range(stitched), 8))
    image = np.empty((size.height, size.width, 3), np.uint8 if bit_depth == 8 else np.uint16)
    with settings.progress.task("Colour fix", size.height) as task, settings.timings.measure("color_fix"):
        for y0, rows in color_fix_rows(content_rows, style_rows, size, compat_upstream=settings.compat):
            image[y0 : y0 + len(rows)] = to_integers(rows, bit_depth)
            task.advance(len(rows))
    _observe(settings, "photo.result", image)
    return image


def to_integers(unit: np.ndarray, bit_depth: int) -> np.ndarray:
    """[0, 1] -> uint8 or uint16, rounded to the nearest."""
    top = np.float32((1 << bit_depth) - 1)
    return np.rint(np.clip(unit, 0, 1) * top).astype(np.uint8 if bit_depth == 8 else np.uint16)


def _grouped(tiles: Sequence[Tile], size: int) -> Iterator[tuple[Sequence[Tile], bool]]:
    """Runs of ``size`` tiles (the last may be shorter), and whether each is the last."""
    for start in range(0, len(tiles), size):
        yield tiles[start : start + size], start + size >= len(tiles)


def _observe(settings: Settings, name: str, value: np.ndarray) -> None:
    if settings.observer is not None:
        settings.observer(name, value)
