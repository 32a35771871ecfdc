"""One restoration: its options completed by what the bundle says, its tile plan, how its result describes itself."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from livemoments.bundle import Bundle
from livemoments.progress import SILENT, Progress
from livemoments.runtime.engine_pool import Timings
from livemoments.runtime.flow import FlowKind, FlowOfTile
from livemoments.runtime.image_files.colour_profiles import profile_name
from livemoments.runtime.inputs import DERIVED_JPEG_QUALITY, RestoreInputs
from livemoments.runtime.noise import NoiseSource, SeededNoise
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.sampler import Observer
from livemoments.runtime.schedule import plan_steps
from livemoments.runtime.tiles.correspondence import MeanFlow, ReferenceCorner
from livemoments.runtime.tiles.plan import TilePlan, plan_balanced, plan_upstream
from livemoments.types import ReferencePolicy, Size


@dataclass(frozen=True)
class Restoration:
    """One photo being restored: what was asked for, completed by what the bundle says, and who watches.

    Attributes:
        bundle: the bundle, opened; its engines run.
        options: with the flow named.
        steps: the schedule's points, in order.
        policy: when ReferenceNet runs.
        noise: every tile's.
        observer: called with the name and value of every intermediate tensor.
        tile_flow: replaces the flow of tiles, for parity with a recording.
        progress: where to report.
        timings: wall time of the stages and tiles so far.
        remarks: what engines said of themselves so far, each once.
    """

    bundle: Bundle
    options: RestoreOptions
    steps: tuple[int, ...]
    policy: ReferencePolicy
    noise: NoiseSource
    observer: Observer | None = None
    tile_flow: FlowOfTile | None = None
    progress: Progress = SILENT
    timings: Timings = field(default_factory=Timings)
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, bundle: Bundle, options: RestoreOptions, *, noise: NoiseSource | None = None, **watch: Any
    ) -> Restoration:
        """Complete the options; ``watch``: observer, tile_flow and progress.

        Raises:
            UsageError: an option cannot be used, alone or with this bundle.
        """
        chosen = options.for_bundle(bundle)
        steps = plan_steps(bundle.manifest.schedule, chosen.steps)
        return cls(bundle, chosen, steps, chosen.policy(bundle), noise or SeededNoise(chosen.seed), **watch)

    @property
    def flow(self) -> FlowKind:
        """What estimates it."""
        assert self.options.flow is not None  # for_bundle() named it
        return self.options.flow

    @property
    def like_upstream(self) -> bool:
        """Whether upstream's result is to be reproduced, faults and all."""
        return self.options.compat == "upstream"

    def remark(self, lines: Sequence[str]) -> None:
        """Tell what an engine says of itself, unless it was said before."""
        for line in lines:
            if line not in self.remarks:
                self.remarks.append(line)
                self.progress.say(line)

    @property
    def one_phase(self) -> bool:
        """Whether only the engines of the phase at work may be loaded."""
        return self.options.residency != "all"


def plan_tiles(run: Restoration, size: Size) -> TilePlan:
    """The tiles for a photo of this size.

    Raises:
        UsageError: no tile size fits.
    """
    options, overlap = run.options, run.bundle.manifest.overlap
    sizes = [options.tile] if options.tile else list(run.bundle.tile_sizes)
    kind = options.tile_plan or ("upstream" if run.like_upstream else "balanced")
    if kind == "upstream":
        return plan_upstream(size, sizes[0], overlap)
    return plan_balanced(size, sizes, overlap, pad_small=options.pad_small)


def describe(
    run: Restoration,
    inputs: RestoreInputs,
    plan: TilePlan,
    corners: Sequence[tuple[MeanFlow, ReferenceCorner]],
) -> dict[str, Any]:
    """How the result was made, JSON-able: sampling, tiles, flow, PCR's shift and clamp rate, the bundle's digest."""
    files = run.bundle.manifest.files
    digest = hashlib.sha256("".join(f"{name}:{files[name].sha256}\n" for name in sorted(files)).encode())
    derived = f"derived from the photo: area downscale to {inputs.frame.size}, JPEG quality {DERIVED_JPEG_QUALITY}"
    return {
        "compat": run.options.compat,
        "steps": len(run.steps),
        "reference_policy": str(run.policy),
        "kv_dtype": run.options.kv_dtype,
        "flow": run.flow,
        "photo_frame": derived if inputs.photo_frame_derived else "given",
        "photo_profile": profile_name(inputs.photo.icc_profile),
        "frame_profile": inputs.frame_profile,
        "photo_frame_profile": inputs.photo_frame_profile,
        "tile_plan": plan.kind,
        "tile": str(plan.tile),
        **({} if run.options.vae_tile is None else {"vae_tile": str(run.options.vae_tile)}),
        "tiles": len(plan.tiles),
        "batch": run.options.batch,
        "pcr": not run.options.no_pcr,
        **({} if run.options.pcr_grid == 1 else {"pcr_grid": run.options.pcr_grid}),
        "pcr_mean_shift_px": round(float(np.mean([np.hypot(mean.dx, mean.dy) for mean, _ in corners])), 3),
        "pcr_clamp_rate": round(float(np.mean([corner.clamped for _, corner in corners])), 4),
        "bundle_sha256": digest.hexdigest(),
    }
