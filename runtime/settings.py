"""What a restoration was asked to do, checked and completed; its tile plan; and how its result describes itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.progress import Progress
from livemoments.runtime._image_encode import DEEP_FORMATS, format_of
from livemoments.runtime._profiles import profile_name
from livemoments.runtime.align import MeanFlow, ReferenceCorner
from livemoments.runtime.engine_pool import Timings
from livemoments.runtime.flow import FlowKind, FlowOfTile
from livemoments.runtime.inputs import DERIVED_JPEG_QUALITY, RestoreInputs
from livemoments.runtime.noise import NoiseSource
from livemoments.runtime.sampler import Observer
from livemoments.runtime.tiles import TilePlan, plan_balanced, plan_upstream
from livemoments.types import ReferencePolicy, Size


@dataclass(frozen=True)
class Settings:
    """The checked and completed arguments of :func:`restore`."""

    bundle: Bundle
    compat: bool
    steps: tuple[int, ...]
    policy: ReferencePolicy
    flow: FlowKind
    tile_plan: Literal["balanced", "upstream"]
    tile: Size | None
    batch: int
    pad_small: bool
    kv_store: Literal["host", "disk"]
    kv_dtype: str
    kv_budget_bytes: int
    kv_cache: str | os.PathLike[str] | None
    noise: NoiseSource
    observer: Observer | None
    progress: Progress
    tile_flow: FlowOfTile | None = None
    no_pcr: bool = False
    timings: Timings = field(default_factory=Timings)


def check_arguments(
    *,
    batch: int,
    kv_budget_bytes: int,
    quality: int,
    bit_depth: int | None,
    compat: str | None,
    output: str | os.PathLike[str] | None,
) -> None:
    """Refuse what would fail later, after the work.

    Raises:
        UsageError: a number is out of range, or two arguments exclude each other.
    """
    if compat not in (None, "upstream"):
        raise UsageError(f"'{compat}' is no compatibility mode", fix="use upstream, or leave it out")
    if batch < 1:
        raise UsageError(f"a batch of {batch} tiles cannot be computed", fix="pass --batch 1 or more")
    if kv_budget_bytes < 1:
        raise UsageError(f"a budget of {kv_budget_bytes} bytes holds no keys and values")
    if not 1 <= quality <= 100:
        raise UsageError(f"{quality} is no quality", fix="use 1 to 100")
    if bit_depth not in (None, 8, 16):
        raise UsageError(f"{bit_depth} bits per channel cannot be written", fix="use 8 or 16")
    if compat and bit_depth == 16:
        raise UsageError("upstream's colour fix has 8 bits; a 16-bit result would hold no more", fix="leave one out")
    if output is not None and bit_depth == 16 and format_of(output) not in DEEP_FORMATS:
        raise UsageError(f"{os.fspath(output)}: {format_of(output)} has no 16-bit RGB", fix="use 8, or PNG or TIFF")


def plan_tiles(settings: Settings, size: Size) -> TilePlan:
    """The tiles for a photo of this size.

    Raises:
        UsageError: no tile size fits, or the bundle does not have the one that was asked for.
    """
    available = settings.bundle.tile_sizes
    if settings.tile is not None and settings.tile not in available:
        raise UsageError(
            f"the bundle has no graphs for {settings.tile} tiles; it has {', '.join(map(str, available))}",
            fix=f"export again with --tile {settings.tile}, or leave --tile out",
        )
    sizes = [settings.tile] if settings.tile else list(available)
    overlap = settings.bundle.manifest.overlap
    if settings.tile_plan == "upstream":
        return plan_upstream(size, sizes[0], overlap)
    if settings.tile_plan == "balanced":
        return plan_balanced(size, sizes, overlap, pad_small=settings.pad_small)
    raise UsageError(f"'{settings.tile_plan}' is no tile plan", fix="use balanced or upstream")


def describe(
    settings: Settings,
    inputs: RestoreInputs,
    plan: TilePlan,
    corners: Sequence[tuple[MeanFlow, ReferenceCorner]],
) -> dict[str, Any]:
    """How the result was made, JSON-able: sampling, tiles, flow, PCR's shift and clamp rate, the bundle's digest."""
    files = settings.bundle.manifest.files
    digest = hashlib.sha256("".join(f"{name}:{files[name].sha256}\n" for name in sorted(files)).encode())
    derived = f"derived from the photo: area downscale to {inputs.frame.size}, JPEG quality {DERIVED_JPEG_QUALITY}"
    return {
        "compat": "upstream" if settings.compat else None,
        "steps": len(settings.steps),
        "reference_policy": str(settings.policy),
        "kv_dtype": settings.kv_dtype,
        "flow": settings.flow,
        "photo_frame": derived if inputs.photo_frame_derived else "given",
        "photo_profile": profile_name(inputs.photo.icc_profile),
        "frame_profile": inputs.frame_profile,
        "photo_frame_profile": inputs.photo_frame_profile,
        "tile_plan": plan.kind,
        "tile": str(plan.tile),
        "tiles": len(plan.tiles),
        "batch": settings.batch,
        "pcr": not settings.no_pcr,
        "pcr_mean_shift_px": round(float(np.mean([np.hypot(mean.dx, mean.dy) for mean, _ in corners])), 3),
        "pcr_clamp_rate": round(float(np.mean([corner.clamped for _, corner in corners])), 4),
        "bundle_sha256": digest.hexdigest(),
    }
