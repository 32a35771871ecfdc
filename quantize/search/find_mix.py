"""From a budget to a mix: the sensitivity of every layer, the search, and a last look at the finished bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from livemoments.bundle import Bundle
from livemoments.errors import CheckFailedError
from livemoments.graphs.linears import find_linears
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.search.budget import Budget, Goal
from livemoments.quantize.search.chain import SearchResult, search
from livemoments.quantize.search.in_memory_engine import load_graph, open_in_memory
from livemoments.quantize.search.layer_cost import layer_cost
from livemoments.quantize.search.photo_loss import TRANSFORMERS, PhotoLoss, Score, open_photo_loss
from livemoments.quantize.search.sensitivity import Rewriter, SensitivityOptions, measure_sensitivity
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import Photo

_CHOICES: dict[Action, tuple[Action, ...]] = {Action.WEIGHT_INT4: (Action.WEIGHT_INT4, Action.WEIGHT_INT8)}
"""What a layer may become besides what it is, by the recipe's action; that action alone where nothing is said."""


def find_mix(
    loss: PhotoLoss, options: SensitivityOptions, budget: Budget, *, goal: Goal = "size", progress: Progress = SILENT
) -> SearchResult:
    """Measure the sensitivity of every layer that the recipe quantizes, and search for the mix.

    Args:
        loss: restores the photos that the loss is measured on.
        options: how layers are quantized; what the recipe keeps is kept.
        budget: what the photos may lose.
        goal: the ``size`` in bytes, or the ``speed`` by a rough model of the products' time.
        progress: where to report.

    Raises:
        UsageError: the budget cannot be measured on these photos, or there is nothing to quantize.
        CheckFailedError: no mix keeps the budget.
        EngineError: a layer's quantization gives a graph that fails or is not finite.
        OutputError: the work folder cannot be written.
    """
    budget.allowed_mse(loss.source_score)  # a budget that cannot be measured fails before the work
    recipe = options.recipe
    reports = [
        measure_sensitivity(
            loss,
            replace(options, action=action, only=lambda linear: not recipe.keeps(linear.id.weight)),
            progress=progress,
        )
        for action in _CHOICES.get(recipe.action, (recipe.action,))
    ]
    return search(
        reports,
        budget,
        loss.source_score,
        lambda layer, action: layer_cost(layer, action, goal, loss.bundle, loss.size, recipe),
        lambda mix: score_mix(loss, mix, options.rewrite),
        goal=goal,
        progress=progress,
    )


def score_mix(loss: PhotoLoss, mix: Mix, rewriter: Rewriter) -> Score:
    """Restore the photos with a whole mix; the changed graphs stay in memory.

    Raises:
        EngineError: a graph fails, or is not finite.
        ResourceError: the changed weights of a stage are larger than a graph in memory can be.
    """
    engines = {}
    with contextlib.ExitStack() as stack:
        for stage in TRANSFORMERS:
            if any(own.stage == stage and action is not Action.KEEP for own, action in mix.items()):
                model = load_graph(loss.bundle, stage, loss.size)
                rewriter(model, find_linears(model, str(stage)), mix)
                engines[stage] = stack.enter_context(open_in_memory(model, loss.bundle, stage, loss.size))
        return loss.score(engines)


def check_budget(
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
    runner = backend or OrtBackend()
    with open_photo_loss(source, photos, backend=runner, seed=seed) as loss:
        score = loss.score_bundle(quantized, runner)
        spent = budget.spent_db(loss.source_score, score)
        if not budget.is_kept(loss.source_score, score):
            raise CheckFailedError(
                f"the new bundle measured {spent:.2f} dB, which breaks the budget of {budget}",
                fix="report this: the mix kept it when it was searched",
            )
    return spent
