"""From a budget to a quantized bundle: sensitivity of every layer, the search for a mix, the bundle, a last look."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import CheckFailedError
from livemoments.graphs.linears import find_linears
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.quantize.actions import Action, LayerPlan
from livemoments.quantize.budget import Budget, Goal, layer_cost
from livemoments.quantize.calibration_set import read_set
from livemoments.quantize.candidate import load_graph, open_candidate
from livemoments.quantize.probe import TRANSFORMERS, Probe, Score, open_probe
from livemoments.quantize.recipes import Recipe, load_recipe
from livemoments.quantize.search import SearchResult, search
from livemoments.quantize.sensitivity import Alter, measure_sensitivity, recipe_alter
from livemoments.quantize.sensitivity_report import Sensitivity
from livemoments.runtime.backends.base import Backend, Engine
from livemoments.runtime.image_files.photo import Photo, read_photo
from livemoments.types import Stage

if TYPE_CHECKING:
    from livemoments.quantize.calibration_result import CalibrationResult
    from livemoments.quantize.pipeline import Quantized

DEFAULT_PHOTOS = 2
"""Photos that layers and mixes are tried on: a tile of each, six steps, for every layer."""
_LADDER: dict[Action, tuple[Action, ...]] = {Action.WEIGHT_INT4: (Action.WEIGHT_INT4, Action.WEIGHT_INT8)}
"""What a layer may become besides what it is; the recipe's own action where nothing is said."""


@dataclass(frozen=True)
class Mix:
    """A mix that keeps a budget, and how it was found: one sensitivity report per action."""

    found: SearchResult
    reports: tuple[Sensitivity, ...]


def read_probe_photos(
    folder: str | os.PathLike[str],
    *,
    limit: int = DEFAULT_PHOTOS,
    with_truth: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[LivePhoto[Photo]]:
    """Photos of a calibration folder.

    Real clips have no truth. For a budget of quality a clip is simulated from each key photo, whose moved view is the
    truth (:mod:`livemoments.simulated_clip`).

    Raises:
        ImageError: the folder is no calibration set, or an image cannot be read.
        UsageError: the limit is below 1, or a photo is too small to simulate a clip from.
    """
    items = read_set(folder, limit=limit, progress=progress)
    if not with_truth:
        return [item.map(read_photo) for item in items]
    from livemoments.simulated_clip import simulate_live_photo

    found = []
    for number, item in enumerate(items):
        photo = read_photo(item.photo)
        pixels = photo.pixels if photo.bit_depth == 8 else np.rint(photo.pixels / 257).astype(np.uint8)
        live = simulate_live_photo(pixels, seed=seed + number)
        found.append(live.map(Photo))
    return found


def find_mix(
    bundle: Bundle,
    photos: Sequence[LivePhoto[Photo]],
    *,
    recipe: str | Recipe,
    budget: str | Budget,
    calibration: CalibrationResult | None = None,
    goal: Goal = "size",
    actions: Sequence[Action] | None = None,
    seed: int = 0,
    work: Path | None = None,
    backend: Backend | None = None,
    progress: Progress = SILENT,
    alter: Alter | None = None,
) -> Mix:
    """Measure every layer's sensitivity and search for the mix.

    Args:
        bundle: the source.
        photos: what is restored to measure the loss; :func:`read_probe_photos`.
        recipe: how layers are quantized; what it keeps is kept.
        budget: ``42dB``, ``0.1dB-of-quality``, or parsed.
        calibration: the activations' ranges, where the recipe needs them.
        goal: the ``size`` in bytes, or the ``speed`` by a rough model of the products' time.
        actions: what a layer may become; by default the recipe's action, and for 4 bits also 8 bits.
        seed: of the noise.
        work: a folder that keeps finished layers; the same call goes on from there.
        backend: what runs the source's graphs.
        progress: where to report.
        alter: instead of the recipe's rewrite.

    Raises:
        UsageError: an argument cannot be used.
        CheckFailedError: no mix keeps the budget.
        EngineError: a layer's quantization gives a graph that fails or is not finite.
        OutputError: the folder cannot be written.
    """
    chosen = load_recipe(recipe)
    limit = budget if isinstance(budget, Budget) else Budget.parse(budget)
    wanted = tuple(actions or _LADDER.get(chosen.action, (chosen.action,)))
    change = alter or recipe_alter(chosen, calibration)
    with open_probe(bundle, photos, backend=backend, seed=seed, parent=work) as probe:
        limit.allowed_mse(probe.source_score)  # a budget that cannot be measured fails before the work
        reports = tuple(
            measure_sensitivity(
                bundle,
                photos,
                recipe=chosen,
                calibration=calibration,
                action=action,
                only=lambda linear: not chosen.keeps(linear.id.weight),
                seed=seed,
                work=work,
                progress=progress,
                probe=probe,
                alter=change,
            )
            for action in wanted
        )
        found = search(
            reports,
            limit,
            probe.source_score,
            lambda layer, action: layer_cost(layer, action, goal, bundle, probe.size, chosen),
            lambda plan: score_plan(probe, plan, change),
            goal=goal,
            progress=progress,
        )
    return Mix(found, reports)


def score_plan(probe: Probe, plan: LayerPlan, alter: Alter) -> Score:
    """Restore the photos with a whole plan; the changed graphs stay in memory.

    Raises:
        EngineError: a graph fails, or is not finite.
        ResourceError: the changed weights of a stage are larger than a graph in memory can be.
    """
    engines: dict[Stage, Engine] = {}
    try:
        for stage in TRANSFORMERS:
            if any(own.stage == stage and action is not Action.KEEP for own, action in plan.items()):
                model = load_graph(probe.bundle, stage, probe.size)
                alter(model, find_linears(model, str(stage)), plan)
                engines[stage] = open_candidate(model, probe.bundle, stage, probe.size)
        return probe.score(engines)
    finally:
        for engine in engines.values():
            engine.close()


def quantize_to_budget(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe,
    budget: str | Budget,
    calibration: str | os.PathLike[str],
    goal: Goal = "size",
    photos: int = DEFAULT_PHOTOS,
    seed: int = 0,
    work: str | os.PathLike[str] | None = None,
    allow_slower: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> tuple[Quantized, Mix]:
    """Find the mix that keeps a budget, write its bundle, and restore with that bundle once more.

    Args:
        bundle: a float bundle.
        output: the new bundle's folder.
        recipe: how layers are quantized; what it keeps is kept.
        budget: ``42dB`` or ``0.1dB-of-quality``.
        calibration: the folder of photos (``lr/``, ``ref/``, perhaps ``ref_lr/``): for the ranges, if the recipe needs
            them, and to measure the loss.
        goal: ``size`` or ``speed``.
        photos: how many of them the loss is measured on.
        seed: of the noise.
        work: a folder that keeps finished photos and layers; the same call goes on from there.
        allow_slower: accept engines that are slower than the source's.
        overwrite: replace an older bundle.
        progress: where to report.

    Raises:
        CheckFailedError: no mix keeps the budget, or the result is slower than the source.
        LiveMomentsError: see :func:`find_mix` and :func:`livemoments.quantize.pipeline.quantize`.
    """
    from livemoments.quantize.calibration import calibrate
    from livemoments.quantize.guards import check_source
    from livemoments.quantize.pipeline import quantize

    source = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    chosen = load_recipe(recipe)
    check_source(source, chosen)
    limit = budget if isinstance(budget, Budget) else Budget.parse(budget)
    folder = None if work is None else Path(work)
    probes = read_probe_photos(calibration, limit=photos, with_truth=limit.of_quality, seed=seed, progress=progress)
    observed = None
    if chosen.needs_calibration:
        observed = calibrate(
            source,
            calibration,
            seed=seed,
            observer=chosen.observer,
            percentile=chosen.percentile,
            work=folder,
            progress=progress,
        )
    mix = find_mix(
        source,
        probes,
        recipe=chosen,
        budget=limit,
        calibration=observed,
        goal=goal,
        seed=seed,
        work=folder,
        progress=progress,
    )
    done = quantize(
        source,
        output,
        recipe=chosen,
        calibration=observed,
        plan=mix.found.plan,
        seed=seed,
        allow_slower=allow_slower,
        overwrite=overwrite,
        progress=progress,
    )
    try:
        check_bundle(source, done.bundle, probes, limit, seed=seed)
    except BaseException:
        shutil.rmtree(done.bundle.path, ignore_errors=True)
        raise
    return done, mix


def check_bundle(
    source: Bundle,
    quantized: Bundle,
    photos: Sequence[LivePhoto[Photo]],
    budget: Budget,
    *,
    seed: int = 0,
    backend: Backend | None = None,
) -> float:
    """Measure a finished bundle against its budget: how much of it is spent, in dB.

    Raises:
        CheckFailedError: the budget is not kept.
    """
    from livemoments.runtime.backends.ort import OrtBackend

    runner = backend or OrtBackend()
    with open_probe(source, photos, backend=runner, seed=seed) as probe:
        score = probe.score_bundle(quantized, runner)
        spent = budget.spent_db(probe.source_score, score)
        if not budget.is_kept(probe.source_score, score):
            raise CheckFailedError(
                f"{quantized.path}: measured {spent:.2f} dB, which breaks the budget of {budget}",
                fix="report this: the mix kept it when it was searched",
            )
    return spent
