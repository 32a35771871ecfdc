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
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, UsageError
from livemoments.graphs.linears import Linear, LinearId, find_linears
from livemoments.progress import SILENT, Progress
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.calibrate.result import CalibrationResult
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.run import rewrite
from livemoments.quantize.rewrite.smoothquant import smooth
from livemoments.quantize.search.cached_backend import Call
from livemoments.quantize.search.in_memory_engine import load_graph, open_in_memory
from livemoments.quantize.search.photo_loss import TRANSFORMERS, PhotoLoss
from livemoments.quantize.search.sensitivity_report import LayerSensitivity, Sensitivity
from livemoments.quantize.search.trial_photos import pixels_sha256
from livemoments.runtime.backends.base import Engine, to_host
from livemoments.store.journals import LineJournal
from livemoments.types import Size, Stage

_DB_DIGITS = 4
_SMOOTHED = (Action.INT8_STATIC, Action.INT8_DYNAMIC, Action.FP8)
"""Actions whose activations are quantized too: outliers matter to them."""

Rewriter = Callable[[ir.Model, Sequence[Linear], Mix], None]
"""Quantizes a graph in place: the graph, all its linears, what to do with each."""


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """What is measured, and how layers are quantized for it.

    Attributes:
        recipe: how a linear is quantized.
        calibration: the activations' ranges, where the recipe needs them.
        action: what a linear becomes, instead of the recipe's action.
        only: which linears to look at; all that the recipe may quantize by default.
        per_step_photo: also restore with the linear quantized at one step only (about three times the time).
        work: a folder in which finished layers are kept; the same call goes on from there.
        rewriter: what quantizes a graph, instead of the recipe.

    Raises:
        UsageError: the recipe quantizes no layer.
    """

    recipe: Recipe
    calibration: CalibrationResult | None = None
    action: Action | None = None
    only: Callable[[Linear], bool] | None = None
    per_step_photo: bool = False
    work: Path | None = None
    rewriter: Rewriter | None = None

    def __post_init__(self) -> None:
        """Refuse a recipe that quantizes nothing, or packages."""
        if self.recipe.for_packages:
            raise UsageError(
                f"the recipe '{self.recipe.name}' compresses Core ML packages, whose layers are not tried one by one",
                fix="use a recipe for ONNX graphs of the same checkpoint",
            )
        if self.wanted is Action.KEEP:
            raise UsageError(f"the recipe '{self.recipe.name}' quantizes no layer", fix="use another recipe")

    @property
    def wanted(self) -> Action:
        """What a linear becomes."""
        return self.action or self.recipe.action

    def rewrite(self, model: ir.Model, linears: Sequence[Linear], mix: Mix) -> None:
        """Quantize a graph in place: smoothing, as far as the mix's layers are concerned, then the rewrite."""
        if self.rewriter is not None:
            return self.rewriter(model, linears, mix)
        recipe, stats = self.recipe, None if self.calibration is None else self.calibration.stats
        if stats is not None and recipe.smoothquant_alpha is not None:
            norms = {own.norm for own in linears if mix.get(own.id, Action.KEEP) in _SMOOTHED and own.norm is not None}
            group = [own for own in linears if own.norm in norms]
            stats = smooth(model, group, stats, recipe.smoothquant_alpha)
        rewrite(model, linears, mix, recipe, stats)
        return None


def measure_sensitivity(loss: PhotoLoss, options: SensitivityOptions, *, progress: Progress = SILENT) -> Sensitivity:
    """Quantize every linear of the two transformers alone, and measure.

    Args:
        loss: restores the middle of one tile of each photo.
        options: how.
        progress: where to report.

    Raises:
        UsageError: there is nothing to quantize, or the recipe needs a calibration.
        EngineError: a layer's quantization gives a graph that fails or is not finite; the layer is named.
        OutputError: the folder cannot be written.
        ResourceError: the disk is full.
    """
    recipe, action = options.recipe, options.wanted
    to_do = [
        (stage, linear, linears)
        for stage, linears in quantizable(loss.bundle, recipe, loss.size)
        for linear in linears
        if options.only is None or options.only(linear)
    ]
    if not to_do:
        raise UsageError(f"there is no layer that the recipe '{recipe.name}' could quantize")
    key = _key(loss, options)
    journal = None if options.work is None else LineJournal(options.work / f"sensitivity-{key[:16]}.jsonl")
    done = {} if journal is None else _finished_layers(journal, key)
    layers = []
    with progress.task(f"sensitivity to {action.value}", total=len(to_do)) as task:
        for stage, linear, linears in to_do:
            layer = done.get(linear.id)
            if layer is None:
                layer = _measure_layer(loss, stage, linear, linears, options)
                if journal is not None:
                    journal.append(layer.to_json())
            layers.append(layer)
            task.advance(note=f"{linear.id}: photo {layer.photo_psnr_db:.1f} dB")
    schedule = loss.bundle.manifest.schedule
    timesteps = tuple(schedule.points[point].timestep for point in loss.points)
    return Sensitivity(recipe.name, key, timesteps, tuple(layers))


def quantizable(bundle: Bundle, recipe: Recipe, size: Size) -> Iterator[tuple[Stage, list[Linear]]]:
    """The linears of each transformer that a recipe may quantize, whatever its patterns keep."""
    for stage in TRANSFORMERS:
        if str(stage) in recipe.stages:
            yield stage, find_linears(load_graph(bundle, stage, size), str(stage))


def _finished_layers(journal: LineJournal, key: str) -> dict[LinearId, LayerSensitivity]:
    """The layers that a journal holds; what another measurement wrote is not read but replaced."""
    if journal.head != {"key": key}:
        journal.start({"key": key})
    done = {}
    for number, line in enumerate(journal.lines):
        try:
            layer = LayerSensitivity.from_json(line)
        except (ValueError, KeyError, TypeError, UsageError):
            journal.keep(number)
            break
        done[layer.linear] = layer
    return done


def _measure_layer(
    loss: PhotoLoss, stage: Stage, linear: Linear, linears: Sequence[Linear], options: SensitivityOptions
) -> LayerSensitivity:
    model, action = load_graph(loss.bundle, stage, loss.size), options.wanted
    try:
        options.rewrite(model, linears, {linear.id: action})
        with loss.remembered(open_in_memory(model, loss.bundle, stage, loss.size)) as engine:
            sqnr = stage_sqnr_db(engine, loss.calls(stage), loss.points)
            photo = loss.score({stage: engine}).psnr_db
            steps = loss.points if options.per_step_photo else ()
            by_step = [loss.score({stage: engine}, point=point).psnr_db for point in steps]
    except EngineError as error:
        raise EngineError(f"{linear.id} as {action.value}: {error.message}", fix=error.fix) from error
    return LayerSensitivity(
        linear=linear.id,
        block=linear.block,
        kind=linear.kind,
        in_features=linear.in_features,
        out_features=linear.out_features,
        action=action,
        sqnr_db=tuple(round(value, _DB_DIGITS) for value in sqnr),
        photo_psnr_db=round(photo, _DB_DIGITS),
        step_photo_psnr_db=tuple(round(value, _DB_DIGITS) for value in by_step),
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


def _key(loss: PhotoLoss, options: SensitivityOptions) -> str:
    """SHA-256 of everything that the numbers depend on."""
    facts = {
        "bundle": [loss.bundle.digest(stage) for stage in loss.bundle.manifest.model.stages],
        "recipe": msgspec.to_builtins(options.recipe),
        "action": options.wanted.value,
        "calibration": None if options.calibration is None else options.calibration.sha256,
        "photos": [pixels_sha256(photo) for photo in loss.photos],
        "size": str(loss.size),
        "points": list(loss.points),
        "per_step_photo": options.per_step_photo,
        "seed": loss.seed,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
