"""The smallest, or fastest, mix of precisions whose photos stay within a budget.

Errors of layers that are quantized alone nearly add up: their rounding is independent. That orders the layers. Of each
one the precisions that no mixture of others beats are kept (the lower hull of error over cost), and all those steps are
sorted by error per unit saved: a chain of mixes from nothing quantized to everything. How far the budget reaches along
the chain is then found by real restorations.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from livemoments.distances import mse_of, psnr_of
from livemoments.errors import CheckFailedError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.progress import SILENT, Progress
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.search.budget import Budget, Goal
from livemoments.quantize.search.photo_loss import Score
from livemoments.quantize.search.sensitivity_report import LayerSensitivity, Sensitivity

SCHEMA = "livemoments/search/1"
MOST_RESTORES = 12
_CLOSE_ENOUGH = 0.002
"""Of the source's cost: when the best mix that keeps the budget and the next that breaks it are closer, it is done."""

_PREDICTED_TRIES = 3
"""So many mixes follow the prediction, corrected by what the last one measured; then the rest is halved."""

Cost = Callable[[LayerSensitivity, Action], float]
Trial = Callable[[Mix], Score]


@dataclass(frozen=True, slots=True)
class Step:
    """One link of the chain: a linear goes from one action to a cheaper one.

    ``error`` is what it adds to the photo's mean squared error, ``saved`` what it takes off the cost.
    """

    linear: LinearId
    action: Action
    error: float
    saved: float


@dataclass(frozen=True, slots=True)
class Tried:
    """One mix that was tried: the first ``steps`` links of the chain."""

    steps: int
    cost: float
    predicted_psnr_db: float
    measured_db: float
    kept: bool


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        mix: what happens to each linear that was measured, in order.
        budget, goal: what was asked for.
        measured_db: what the mix costs: PSNR from the source's photos, or the quality lost, as the budget says.
        source_cost, cost: cost of the measured linears, before and after, in bytes or in weighted multiplications.
        tried: every mix that was restored with, in that order.
    """

    mix: Mix
    budget: Budget
    goal: Goal
    measured_db: float
    source_cost: float
    cost: float
    tried: tuple[Tried, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; infinite numbers are null."""
        return {
            "schema": SCHEMA,
            "budget": str(self.budget),
            "goal": self.goal,
            "measured_db": _finite(self.measured_db),
            "source_cost": self.source_cost,
            "cost": self.cost,
            "plan": {str(linear): action.value for linear, action in self.mix.items()},
            "tried": [
                {name: _finite(value) for name, value in dataclasses.asdict(trial).items()} for trial in self.tried
            ],
        }

    def to_text(self) -> str:
        """Two lines: what is quantized to what, and what that costs."""
        counts = Counter(self.mix.values())
        mix = ", ".join(f"{counts[action]} {action.value}" for action in Action if counts[action])
        what = "quality lost" if self.budget.of_quality else "photo"
        share = self.cost / self.source_cost if self.source_cost else 1.0
        unit = "bytes" if self.goal == "size" else "estimated time"
        return (
            f"mix for {self.budget}: {mix}\n"
            f"  {what} {self.measured_db:.2f} dB, {share:.3f} of the layers' {unit}, {len(self.tried)} mixes tried"
        )


def search(
    reports: Sequence[Sensitivity],
    budget: Budget,
    source: Score,
    cost: Cost,
    trial: Trial,
    *,
    goal: Goal = "size",
    most_restores: int = MOST_RESTORES,
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the mix. Deterministic, as far as ``trial`` is.

    Args:
        reports: the sensitivity of the same layers to one action each.
        budget: what the photos may lose.
        source: the source's own score.
        cost: gives a layer's cost under an action (:func:`livemoments.quantize.search.layer_cost.layer_cost`).
        trial: restores with a mix.
        goal: what ``cost`` counts.
        most_restores: how many mixes may be tried.
        progress: where to report.

    Raises:
        UsageError: there is nothing to search in.
        CheckFailedError: not even the most harmless layer can be quantized within the budget.
    """
    layers = _merge(reports)
    chain = build_chain(layers, cost)
    if not chain:
        raise UsageError("no layer becomes cheaper by these actions", fix="choose another recipe, or goal")
    source_cost = sum(cost(options[0], Action.KEEP) for options in layers.values())
    allowed = budget.allowed_mse(source)
    errors, costs = [0.0], [source_cost]
    for step in chain:
        errors.append(errors[-1] + step.error)
        costs.append(costs[-1] - step.saved)

    tried: list[Tried] = []
    best: tuple[int, float] | None = None
    low, high = 0, len(chain) + 1  # `low` links keep the budget, `high` break it
    ratio = 1.0  # measured error over the sum of the layers' own
    with progress.task(f"mixes within {budget}", total=most_restores) as task:
        while high - low > 1 and len(tried) < most_restores:
            if best is not None and costs[low] - costs[min(high, len(chain))] < _CLOSE_ENOUGH * source_cost:
                break
            steps = _guess(errors, allowed / ratio, low, high, bisect=len(tried) >= _PREDICTED_TRIES)
            score = trial(mix_of(layers, chain[:steps]))
            kept = budget.is_kept(source, score)
            measured = budget.spent_db(source, score)
            tried.append(Tried(steps, costs[steps], psnr_of(errors[steps]), measured, kept))
            task.advance(note=f"{steps} of {len(chain)} links: {measured:.2f} dB")
            if errors[steps] > 0 and math.isfinite(score.psnr_db):
                ratio = max(score.mse / errors[steps], 1e-6)
            if kept:
                low, best = steps, (steps, measured)
            else:
                high = steps
    if best is None:
        raise CheckFailedError(
            f"no mix keeps the budget of {budget}: the mildest that was tried measured {tried[-1].measured_db:.2f} dB",
            fix="allow more loss, or choose a finer recipe",
        )
    steps, measured = best
    return SearchResult(mix_of(layers, chain[:steps]), budget, goal, measured, source_cost, costs[steps], tuple(tried))


def build_chain(layers: Mapping[LinearId, Sequence[LayerSensitivity]], cost: Cost) -> list[Step]:
    """Every worthwhile step of every layer, the least error per unit saved first."""
    links: list[tuple[float, str, Step]] = []
    for linear, options in layers.items():
        points = [(cost(options[0], Action.KEEP), 0.0, Action.KEEP)]
        points += [(cost(option, option.action), mse_of(option.photo_psnr_db), option.action) for option in options]
        hull = _lower_hull(points)
        for before, after in itertools.pairwise(hull):
            saved, error = before[0] - after[0], after[1] - before[1]
            links.append((error / saved, f"{linear}", Step(linear, after[2], error, saved)))
    # a layer's own links have rising slopes, so the order of the chain is theirs; sorting is stable where they tie
    return [step for _, _, step in sorted(links, key=lambda link: link[:2])]


def mix_of(layers: Mapping[LinearId, Sequence[LayerSensitivity]], chain: Sequence[Step]) -> Mix:
    """What a part of the chain does to each layer."""
    mix = dict.fromkeys(layers, Action.KEEP)
    for step in chain:
        mix[step.linear] = step.action
    return mix


def _merge(reports: Sequence[Sensitivity]) -> dict[LinearId, list[LayerSensitivity]]:
    layers: dict[LinearId, list[LayerSensitivity]] = {}
    for report in reports:
        for layer in report.layers:
            layers.setdefault(layer.linear, []).append(layer)
    return layers


def _lower_hull(points: Sequence[tuple[float, float, Action]]) -> list[tuple[float, float, Action]]:
    """From the first point towards lower cost: the points that no mixture of two others beats."""
    start, *others = points
    hull = [start]
    cheaper = sorted((p for p in others if p[0] < start[0]), key=lambda p: (-p[0], p[1], p[2].value))
    for point in cheaper:
        if point[0] == hull[-1][0]:  # as cheap as one with less error
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[float, float, Action], b: tuple[float, float, Action]) -> float:
    return (b[1] - a[1]) / (a[0] - b[0])


def _guess(errors: Sequence[float], allowed: float, low: int, high: int, *, bisect: bool) -> int:
    """How many links to try next: as many as the prediction allows, or the middle of what is undecided."""
    if bisect:
        return (low + high) // 2
    predicted = sum(1 for error in errors[1:] if error <= allowed)
    return min(max(predicted, low + 1), high - 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
