"""What each layer's quantization costs by itself: noise of its stage at every step, and its trace in the photo.

For each linear the stage's graph is rewritten with that linear alone quantized and run on the very inputs that the
source's stage saw (SQNR at every schedule point), then the photo is restored with it (PSNR from the source's photo).
Finished layers are appended to a file, so that a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx_ir as ir

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, UsageError
from livemoments.graphs.linears import Linear, find_linears
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.quantize.actions import Action, LayerPlan
from livemoments.quantize.candidate import load_graph, open_candidate
from livemoments.quantize.journal import Journal
from livemoments.quantize.memo import Call
from livemoments.quantize.probe import TRANSFORMERS, Probe, open_probe
from livemoments.quantize.probe_photos import pixels_sha256
from livemoments.quantize.recipes import Recipe, load_recipe
from livemoments.quantize.sensitivity_report import LayerSensitivity, Sensitivity
from livemoments.runtime.backends.base import Backend, Engine, to_host
from livemoments.runtime.image_files.photo import Photo
from livemoments.types import Size, Stage

if TYPE_CHECKING:
    from livemoments.quantize.calibration import CalibrationResult

_DB_DIGITS = 4
_SMOOTHED = (Action.INT8_STATIC, Action.INT8_DYNAMIC, Action.FP8)
"""Actions whose activations are quantized too: outliers matter to them."""

Alter = Callable[[ir.Model, Sequence[Linear], LayerPlan], None]
"""Quantizes a graph in place: the graph, all its linears, what to do with each."""


def measure_sensitivity(
    bundle: Bundle,
    photos: Sequence[LivePhoto[Photo]],
    *,
    recipe: str | Recipe,
    calibration: CalibrationResult | None = None,
    action: Action | None = None,
    only: Callable[[Linear], bool] | None = None,
    per_step_photo: bool = False,
    seed: int = 0,
    size: Size | None = None,
    work: Path | None = None,
    backend: Backend | None = None,
    progress: Progress = SILENT,
    probe: Probe | None = None,
    alter: Alter | None = None,
) -> Sensitivity:
    """Quantize every linear of the two transformers alone, and measure.

    Args:
        bundle: the source.
        photos: of each, the middle of one tile is restored.
        recipe: how a linear is quantized.
        calibration: the activations' ranges, where the recipe needs them.
        action: instead of the recipe's.
        only: which linears to look at; all that the recipe may quantize by default.
        per_step_photo: also restore with the linear quantized at one step only (about three times the time).
        seed: of the noise.
        size: the tiles' size; the bundle's smallest by default.
        work: a folder in which finished layers are kept; the same call goes on from there.
        backend: what runs the source's graphs.
        progress: where to report.
        probe: an open one for this bundle and these photos, instead of a new one.
        alter: instead of the recipe's rewrite.

    Raises:
        UsageError: no photo, or nothing to quantize.
        EngineError: a layer's quantization gives a graph that fails or is not finite; the layer is named.
        OutputError: the folder cannot be written.
    """
    found = load_recipe(recipe)
    wanted = action or found.action
    if wanted is Action.KEEP:
        raise UsageError(f"the recipe '{found.name}' quantizes no layer", fix="use another recipe")
    change = alter or recipe_alter(found, calibration)
    if probe is None:
        with open_probe(bundle, photos, backend=backend, size=size, seed=seed, parent=work) as opened:
            return _measure(opened, found, wanted, change, calibration, only, per_step_photo, seed, work, progress)
    return _measure(probe, found, wanted, change, calibration, only, per_step_photo, seed, work, progress)


def quantizable(bundle: Bundle, recipe: Recipe, size: Size) -> Iterator[tuple[Stage, list[Linear]]]:
    """The linears of each transformer that a recipe may quantize, whatever its patterns keep."""
    for stage in TRANSFORMERS:
        if str(stage) in recipe.stages:
            yield stage, find_linears(load_graph(bundle, stage, size), str(stage))


def _measure(
    probe: Probe,
    recipe: Recipe,
    action: Action,
    alter: Alter,
    calibration: CalibrationResult | None,
    only: Callable[[Linear], bool] | None,
    per_step_photo: bool,
    seed: int,
    work: Path | None,
    progress: Progress,
) -> Sensitivity:
    work_list = [
        (stage, linear, linears)
        for stage, linears in quantizable(probe.bundle, recipe, probe.size)
        for linear in linears
        if only is None or only(linear)
    ]
    if not work_list:
        raise UsageError(f"there is no layer that the recipe '{recipe.name}' could quantize")
    key = _key(probe, recipe, action, calibration, per_step_photo, seed)
    journal = Journal(None if work is None else work / f"sensitivity-{key[:16]}.jsonl", key)
    schedule = probe.bundle.manifest.schedule
    layers = []
    with progress.task(f"sensitivity to {action.value}", total=len(work_list)) as task:
        for stage, linear, linears in work_list:
            layer = journal.done.get(linear.id)
            if layer is None:
                layer = _measure_layer(probe, stage, linear, linears, action, alter, per_step_photo)
                journal.add(layer)
            layers.append(layer)
            task.advance(note=f"{linear.id}: photo {layer.photo_psnr_db:.1f} dB")
    timesteps = tuple(schedule.points[point].timestep for point in probe.points)
    return Sensitivity(recipe.name, key, timesteps, tuple(layers))


def _measure_layer(
    probe: Probe,
    stage: Stage,
    linear: Linear,
    linears: Sequence[Linear],
    action: Action,
    alter: Alter,
    per_step_photo: bool,
) -> LayerSensitivity:
    model = load_graph(probe.bundle, stage, probe.size)
    try:
        alter(model, linears, {linear.id: action})
        with probe.remembered(open_candidate(model, probe.bundle, stage, probe.size)) as engine:
            sqnr = stage_sqnr_db(engine, probe.calls(stage), probe.points)
            photo = probe.score({stage: engine}).psnr_db
            steps = probe.points if per_step_photo else ()
            by_step = tuple(_rounded(probe.score({stage: engine}, point=point).psnr_db) for point in steps)
    except EngineError as error:
        raise EngineError(f"{linear.id} as {action.value}: {error.message}", fix=error.fix) from error
    return LayerSensitivity(
        linear.id,
        linear.block,
        linear.kind,
        linear.in_features,
        linear.out_features,
        action,
        tuple(map(_rounded, sqnr)),
        _rounded(photo),
        by_step,
    )


def stage_sqnr_db(engine: Engine, calls: Sequence[Call], points: Iterable[int]) -> tuple[float, ...]:
    """Signal to noise of all outputs together, at each point over all recorded calls of it.

    A point at which the source was never called (an inexact reference policy) counts as free of noise.
    """
    signal = dict.fromkeys(points, 0.0)
    noise = dict(signal)
    for call in calls:
        if call.point not in signal:
            continue
        outputs = engine.run(engine.cast(dict(call.inputs)))
        for name, expected in call.outputs.items():
            wide = expected.astype(np.float64)
            signal[call.point] += float(np.sum(wide**2))
            noise[call.point] += float(np.sum((to_host(outputs[name]).astype(np.float64) - wide) ** 2))
    return tuple(10 * math.log10(signal[p] / noise[p]) if noise[p] > 0 else math.inf for p in signal)


def recipe_alter(recipe: Recipe, calibration: CalibrationResult | None) -> Alter:
    """What the pipeline makes of a recipe: smoothing, as far as a plan's layers are concerned, then the rewrite."""
    from livemoments.quantize.rewrite import rewrite
    from livemoments.quantize.smooth import smooth

    def alter(model: ir.Model, linears: Sequence[Linear], plan: LayerPlan) -> None:
        stats = None if calibration is None else calibration.stats
        if stats is not None and recipe.smoothquant_alpha is not None:
            norms = {own.norm for own in linears if plan.get(own.id, Action.KEEP) in _SMOOTHED and own.norm is not None}
            group = [own for own in linears if own.norm in norms]
            _, stats = smooth(model, group, stats, recipe.smoothquant_alpha)
        rewrite(model, linears, plan, recipe, stats)

    return alter


def _key(
    probe: Probe,
    recipe: Recipe,
    action: Action,
    calibration: CalibrationResult | None,
    per_step_photo: bool,
    seed: int,
) -> str:
    facts = {
        "bundle": [probe.bundle.digest(stage) for stage in probe.bundle.manifest.model.stages],
        "recipe": msgspec.to_builtins(recipe),
        "action": action.value,
        "calibration": None if calibration is None else calibration.sha256,
        "photos": [pixels_sha256(photo) for photo in probe.photos],
        "size": str(probe.size),
        "points": list(probe.points),
        "per_step_photo": per_step_photo,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _rounded(value: float) -> float:
    return round(value, _DB_DIGITS)
