"""Which way of restoring a photo fits a memory budget, and which of those is fastest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.profiles.planner.cost import StageCost, cost_of_stage
from livemoments.profiles.planner.engines import ARENA_STAGES, EngineModel, engine_model, rates_of
from livemoments.profiles.planner.packed import RECIPES
from livemoments.profiles.planner.timeline import Segment, Work, timeline
from livemoments.profiles.schema import BASES, Profile
from livemoments.runtime.flow import resolve_flow
from livemoments.runtime.options import RESIDENCIES, Residency, vae_sizes
from livemoments.runtime.tiles.plan import plan_balanced, plan_upstream
from livemoments.runtime.tiles.vae import vae_windows
from livemoments.types import ReferencePolicy, Size, Stage

BATCHES = (1, 2, 4, 8)
"""Tiles at once that are tried besides the profile's."""
MARGIN = 0.1
"""Of a predicted peak, kept free beside it: how far predictions are allowed to be off."""
_FRAME_LONGER_SIDE = 1920  # of a phone's video
_FLOW_MULTIPLE_PX = 8
_AS_FAST = 1.02  # a prediction tells no more apart


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One way of restoring the photo, and what it is predicted to take.

    Attributes:
        arguments: of ``livemoments restore`` that make the runtime do it.
        tile: the tiles' size.
        tiles: how many.
        batch: of them at once.
        reference: the policy.
        flow: ``engine`` or ``dis``.
        residency: which engines are loaded at once, as the runtime calls it.
        vae_tile: what the VAE sees at once; ``None``: whole tiles.
        kv_store: where stored keys and values lie.
        exact: the picture is that of ``per-step`` with the bundle's own flow and whole tiles in the VAE; ``mapped``
            rounds float32's last digits otherwise.
        peak_bytes: of the memory that the budget is for.
        host_peak_bytes: of the process.
        needs_bytes: the peak and the margin: the least budget that the plan is said to fit.
        data_bytes: the least limit of the process' private memory (``ulimit -d``, RLIMIT_DATA) that it is said to fit.
            That counts what engines' arenas reserve and never touch as well; a control group does not.
        seconds: in all; ``None`` where the profile has no rate.
        flops: of all products.
        fits: within the budget and the time.
        over_bytes: by how much it does not fit; 0 if it does.
        segments: the timeline.
    """

    arguments: tuple[str, ...]
    tile: str
    tiles: int
    batch: int
    reference: str
    flow: str
    residency: str
    vae_tile: str | None
    kv_store: str
    exact: bool
    peak_bytes: int
    host_peak_bytes: int
    needs_bytes: int
    data_bytes: int
    seconds: float | None
    flops: int
    fits: bool
    over_bytes: int
    segments: tuple[Segment, ...]


class Plans(msgspec.Struct, frozen=True, kw_only=True):
    """All that were compared.

    Attributes:
        profile: its name.
        photo: the result's size.
        frame: the video frames'.
        steps: of sampling.
        engine: what runs the graphs.
        measured: whether this engine's predicted memory was ever compared with measured peaks.
        rates: where the seconds come from.
        budget_bytes: of memory; ``None``: none was given or known.
        max_seconds: of time.
        stages: what one run of each stage over one tile costs, for the chosen plan's tile.
        chosen: the fastest that fits, an approximate one only where no exact one does; ``None``: none does.
        plans: the chosen one first, then by what they take.
    """

    profile: str
    photo: str
    frame: str
    steps: int
    engine: str
    measured: bool
    rates: str
    budget_bytes: int | None
    max_seconds: float | None
    stages: tuple[StageCost, ...]
    chosen: Plan | None
    plans: tuple[Plan, ...]

    @property
    def nearest(self) -> Plan:
        """The plan that takes the least memory."""
        return min(self.plans, key=lambda plan: plan.peak_bytes)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is to be planned.

    Attributes:
        photo: the result's size.
        frame: the video frames' size; ``None``: the photo's shape with 1920 pixels along the longer side.
        max_memory_bytes: ``None``: the profile's budget.
        max_seconds: for the photo.
        reference: the policy; ``None``: the profile's, and phase-split in place of per-step, which is as exact.
        steps: ``None``: the profile's, else the bundle's.
        tile: only this size of the bundle.
        cores: of the CPU that will be used; ``None``: as many as the profile's rates were reached with.
        recipe: plan as if the bundle had been quantized by it.
    """

    photo: Size
    frame: Size | None = None
    max_memory_bytes: int | None = None
    max_seconds: float | None = None
    reference: str | None = None
    steps: int | None = None
    tile: Size | None = None
    cores: int | None = None
    recipe: str | None = None


class Costs:
    """The stages' costs of one bundle, each counted once.

    Args:
        bundle: opened; its weights may be missing.
        recipe: count the transformers as it would leave them.
        known: what was counted before, and need not be again.
    """

    def __init__(self, bundle: Bundle, recipe: str | None = None, known: Iterable[StageCost] = ()) -> None:
        self.bundle = bundle
        self._recipe = recipe
        self._known = {(Stage(cost.stage), Size.parse(cost.size), cost.batch): cost for cost in known}

    def of(self, stage: Stage, size: Size, batch: int = 1) -> StageCost:
        """One stage's."""
        key = (stage, size, batch)
        if key not in self._known:
            self._known[key] = cost_of_stage(self.bundle, stage, size, batch, recipe=self._recipe)
        return self._known[key]


def make_plans(bundle: Bundle, profile: Profile, request: PlanRequest, *, costs: Costs | None = None) -> Plans:
    """Compare every plan that the runtime can carry out.

    Args:
        bundle: opened; its weights may be missing.
        profile: of the device.
        request: what is to be planned.
        costs: the bundle's, where some were counted before, as in planning for another device.

    Raises:
        UsageError: a policy, tile size, number of steps or recipe that the bundle does not have; a photo too small.
        BundleError: a graph is missing, or cannot be understood.
    """
    if not bundle.has_onnx_graphs:
        target = bundle.manifest.target
        held = {
            "coreml": "a Core ML bundle",
            "coreai": "a Core AI bundle",
            "torch": "a bundle of PyTorch networks",
        }.get(target, f"a bundle for {target}")
        raise UsageError(
            f"{held} has no graphs that can be counted", fix="plan with the ONNX bundle of the same checkpoint"
        )
    if request.recipe is not None:
        _check_recipe(bundle, request.recipe)
    costs = costs or Costs(bundle, request.recipe)
    flow = resolve_flow(profile.restore.flow, bundle)
    frame = request.frame or _frame_of(request.photo)
    steps = request.steps or profile.restore.steps or bundle.manifest.schedule.default_steps
    if str(steps) not in bundle.manifest.schedule.plans:
        known = ", ".join(bundle.manifest.schedule.plans)
        raise UsageError(f"the bundle's schedule has no plan for {steps} steps; it has {known}")
    photo_flow = costs.of(Stage.FLOW, _padded(frame)) if flow == "engine" else None
    model, rates = engine_model(profile), rates_of(profile, request.cores)
    budget = request.max_memory_bytes or profile.budget_bytes
    found = []
    for work in _works(bundle, profile, request, frame, steps, on_engine=flow == "engine"):
        per_stage = {
            stage: costs.of(stage, work.size(stage), work.batch)
            for stage in bundle.manifest.model.stages
            if stage is not Stage.FLOW or work.flow_on_engine
        }
        segments = timeline(work, per_stage, model, rates, photo_flow if work.flow_on_engine else None)
        plan = _plan(work, per_stage, segments, budget, request.max_seconds, model)
        found.append(msgspec.structs.replace(plan, exact=plan.exact and plan.flow == flow))
    fitting = [plan for plan in found if plan.fits]
    chosen = _choose(fitting)
    rest = sorted((plan for plan in found if plan is not chosen), key=lambda plan: plan.peak_bytes)
    shown = Size.parse((chosen or rest[0]).tile)
    return Plans(
        profile=profile.name,
        photo=str(request.photo),
        frame=str(frame),
        steps=steps,
        engine=model.name,
        measured=model.measured,
        rates=rates.basis,
        budget_bytes=budget,
        max_seconds=request.max_seconds,
        stages=tuple(
            costs.of(stage, shown) for stage in bundle.manifest.model.stages if stage is not Stage.FLOW or photo_flow
        ),
        chosen=chosen,
        plans=(*(() if chosen is None else (chosen,)), *rest),
    )


def _check_recipe(bundle: Bundle, recipe: str) -> None:
    if recipe not in RECIPES:
        raise UsageError(f"what '{recipe}' would leave cannot be told beforehand", fix=f"use {' or '.join(RECIPES)}")
    precision = bundle.stage(Stage.RESTORATION).precision
    if precision not in BASES:
        raise UsageError(f"the bundle's RestorationNet is {precision} already", fix="leave --recipe out")


def _choose(fitting: Sequence[Plan]) -> Plan | None:
    """The fastest that is exact, an approximate one only where there is no other; :func:`_order` breaks ties."""
    exact = [plan for plan in fitting if plan.exact] or fitting
    if not exact:
        return None
    least = min(plan.seconds or 0.0 for plan in exact)
    return min((plan for plan in exact if (plan.seconds or 0.0) <= least * _AS_FAST), key=_order)


def _order(plan: Plan) -> tuple[object, ...]:
    """Among plans that are as fast: the one with the least memory; where no time is known, the simplest that fits."""
    simplest = (RESIDENCIES.index(plan.residency), plan.kv_store != "host", plan.batch)
    least = (plan.peak_bytes,)
    return (*simplest, *least, plan.arguments) if plan.seconds is None else (*least, *simplest, plan.arguments)


def _works(
    bundle: Bundle, profile: Profile, request: PlanRequest, frame: Size, steps: int, *, on_engine: bool
) -> Iterable[Work]:
    if request.tile is not None and request.tile not in bundle.tile_sizes:
        have = ", ".join(map(str, bundle.tile_sizes))
        raise UsageError(f"the bundle has no graphs for {request.tile} tiles; it has {have}")
    tiles = [request.tile] if request.tile else bundle.tile_sizes
    policy = ReferencePolicy.parse(request.reference or profile.restore.reference)
    policy.source_steps(steps)
    policies = [policy]
    if request.reference is None and policy.name == "per-step":
        policies.append(ReferencePolicy("phase-split"))
    overlap = bundle.manifest.overlap
    for size, batch in itertools.product(tiles, sorted({*BATCHES, profile.tiles.batch})):
        if profile.tiles.plan == "upstream":
            layout = plan_upstream(request.photo, size, overlap)
        else:
            layout = plan_balanced(request.photo, [size], overlap, pad_small=True)
        if batch > max(1, len(layout.tiles)):
            continue
        flows = (True, False) if on_engine else (False,)
        windows = {None: 1} | {
            small: len(vae_windows(size, small, bundle.manifest.model.vae_scale))
            for small in vae_sizes(bundle)
            if small != size and small.height <= size.height and small.width <= size.width
        }
        ways = itertools.product(policies, _residencies(profile), (False, True), flows, windows)
        for one, residency, on_disk, raft, window in ways:
            work = Work(
                photo=request.photo,
                frame=frame,
                tile=size,
                tiles=len(layout.tiles),
                batch=batch,
                policy=one,
                steps=steps,
                residency=residency,
                kv_on_disk=on_disk,
                kv_budget_bytes=int(profile.restore.kv_budget_gb * 1e9),
                flow_on_engine=raft,
                vae_tile=window,
                vae_windows=windows[window],
            )
            # phases make phase-split of per-step; a store is needed only where something is stored
            if (work.by_phases and one.name == "phase-split") or (on_disk and not work.stores):
                continue
            yield work


def _residencies(profile: Profile) -> tuple[Residency, ...]:
    """Those that the profile's engines can do: mapped weights are the CPU's, and only ONNX graphs are cut."""
    provider = profile.engine.provider
    if profile.engine.target not in ("onnx", "tensorrt") or provider.startswith("native-"):
        return ("all", "phases")
    return tuple(residency for residency in RESIDENCIES if residency != "mapped" or provider == "cpu")


def _plan(
    work: Work,
    costs: Mapping[Stage, StageCost],
    segments: Sequence[Segment],
    budget_bytes: int | None,
    max_seconds: float | None,
    model: EngineModel,
) -> Plan:
    host = max(segment.host_bytes for segment in segments)
    peak = host if model.shares_host else max(segment.device_bytes for segment in segments)
    times = [segment.seconds for segment in segments]
    seconds = None if any(value is None for value in times) else sum(value for value in times if value is not None)
    needs = _with_margin(peak)
    over = 0 if budget_bytes is None else max(0, needs - budget_bytes)
    in_time = max_seconds is None or (seconds is not None and seconds <= max_seconds)
    per_tile = {
        Stage.FLOW: 1,
        Stage.VAE_ENCODER: 2 * work.vae_windows,
        Stage.MOTION: 1,
        Stage.REFERENCE: work.points,
        Stage.RESTORATION: work.steps,
        Stage.VAE_DECODER: work.vae_windows,
    }
    return Plan(
        arguments=_arguments(work),
        tile=str(work.tile),
        tiles=work.tiles,
        batch=work.batch,
        reference=str(work.policy),
        flow="engine" if work.flow_on_engine else "dis",
        residency=work.residency,
        vae_tile=None if work.vae_tile is None else str(work.vae_tile),
        kv_store="disk" if work.kv_on_disk else "host",
        exact=work.policy.exact and work.vae_tile is None,
        peak_bytes=peak,
        host_peak_bytes=host,
        needs_bytes=needs,
        data_bytes=_with_margin(host) + (_reserved_bytes(work, costs, model) if model.shares_host else 0),
        seconds=seconds,
        flops=sum(per_tile[stage] * cost.flops for stage, cost in costs.items()) * work.tiles // work.batch,
        fits=over == 0 and in_time,
        over_bytes=over,
        segments=tuple(segments),
    )


def _with_margin(peak_bytes: int) -> int:
    return math.ceil(peak_bytes * (1 + MARGIN))


def _reserved_bytes(work: Work, costs: Mapping[Stage, StageCost], model: EngineModel) -> int:
    """What arenas may reserve beyond what they hold: a new region is as large as all before, so up to as much again.

    Those of networks that were closed are counted as well: what is opened after them lies beside the holes they leave.
    """
    arenas = [stage for stage in costs if stage in ARENA_STAGES and work.keeping(stage) == "usual"]
    return sum(model.running_bytes(costs[stage], 2) for stage in arenas)


def _arguments(work: Work) -> tuple[str, ...]:
    """Of ``livemoments restore``."""
    return (
        *("--tile", str(work.tile), "--batch", str(work.batch), "--reference", str(work.policy)),
        *(() if work.vae_tile is None else ("--vae-tile", str(work.vae_tile))),
        *("--residency", work.residency),
        *("--kv-store", "disk" if work.kv_on_disk else "host"),
        *("--kv-budget", str(work.kv_budget_bytes), "--steps", str(work.steps)),
        *("--flow", "engine" if work.flow_on_engine else "dis"),
    )


def _frame_of(photo: Size) -> Size:
    scale = min(1.0, _FRAME_LONGER_SIDE / max(photo.height, photo.width))
    return Size(max(1, round(photo.height * scale)), max(1, round(photo.width * scale)))


def _padded(size: Size) -> Size:
    multiple = _FLOW_MULTIPLE_PX
    return Size(-(-size.height // multiple) * multiple, -(-size.width // multiple) * multiple)
