"""The search for a mix of precisions: on made-up layers whose best mix is known, and on a real bundle."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from livemoments.distances import mse_of, psnr_of
from livemoments.errors import CheckFailedError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.search.budget import Budget
from livemoments.quantize.search.chain import build_chain, mix_of, search
from livemoments.quantize.search.photo_loss import Score
from livemoments.quantize.search.sensitivity_report import LayerSensitivity, Sensitivity

BITS = {Action.KEEP: 32, Action.WEIGHT_INT8: 8, Action.WEIGHT_INT4: 4}
EXACT = Score(0.0, None)


def layer(number: int, action: Action, mse: float, size: int = 100) -> LayerSensitivity:
    name = LinearId("restoration", f"transformer_blocks.{number}.ff.net.2.weight")
    return LayerSensitivity(name, number, "ff.net.2", size, 1, action, (30.0, 20.0), psnr_of(mse))


def cost(own: LayerSensitivity, action: Action) -> float:
    return own.in_features * own.out_features * BITS[action] / 8


def made_up(count: int, seed: int) -> tuple[list[Sensitivity], dict[tuple[LinearId, Action], float]]:
    rng = np.random.default_rng(seed)
    errors: dict[tuple[LinearId, Action], float] = {}
    layers: dict[Action, list[LayerSensitivity]] = {Action.WEIGHT_INT8: [], Action.WEIGHT_INT4: []}
    for number in range(count):
        size, base = int(rng.integers(10, 300)), 10.0 ** rng.uniform(-8, -5)
        for action, factor in ((Action.WEIGHT_INT8, 1.0), (Action.WEIGHT_INT4, rng.uniform(50, 300))):
            own = layer(number, action, base * factor, size)
            layers[action].append(own)
            errors[own.linear, action] = mse_of(own.photo_psnr_db)
    return [Sensitivity("made-up", "key", (1.0,), tuple(found)) for found in layers.values()], errors


class Additive:
    """Photos whose error is the sum of the layers', times a factor that the search cannot know."""

    def __init__(self, errors: dict[tuple[LinearId, Action], float], factor: float = 1.0) -> None:
        self.errors, self.factor = errors, factor
        self.restores = 0

    def __call__(self, mix: Mix) -> Score:
        self.restores += 1
        found = [self.errors[item] for item in mix.items() if item[1] is not Action.KEEP]
        return Score(self.factor * sum(found), None)


def total(mix: Mix, reports: list[Sensitivity]) -> float:
    sizes = {own.linear: own for own in reports[0].layers}
    return sum(cost(sizes[linear], action) for linear, action in mix.items())


@pytest.mark.parametrize("text", ["42dB", " 42.0 db", "0.1dB-of-quality", "0.25db-OF-quality"])
def test_budgets_are_read_and_written(text: str) -> None:
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)) == budget
    assert budget.of_quality == ("quality" in text.lower())


@pytest.mark.parametrize("text", ["", "42", "dB", "-3dB", "0dB", "42dB of quality", "1e9dB", "nandB"])
def test_bad_budgets_are_refused_with_the_two_forms(text: str) -> None:
    with pytest.raises(UsageError, match="not a budget") as caught:
        Budget.parse(text)
    assert "dB-of-quality" in str(caught.value.fix)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("db", [38.0, 45.0, 52.0])
def test_found_mix_keeps_the_budget_and_the_next_link_breaks_it(db: float, factor: float) -> None:
    reports, errors = made_up(80, seed=int(db))
    trial = Additive(errors, factor)
    found = search(reports, Budget(db), EXACT, cost, trial)
    assert found.measured_db >= db
    assert found.measured_db == trial(found.mix).psnr_db
    assert found.cost == pytest.approx(total(found.mix, reports))
    assert len(found.tried) <= 12
    chain = build_chain({own.linear: [own, b] for own, b in zip(*(r.layers for r in reports), strict=True)}, cost)
    costs = [found.source_cost - sum(step.saved for step in chain[:n]) for n in range(len(chain) + 1)]
    links = max(tried.steps for tried in found.tried if tried.kept)
    broken = [tried.steps for tried in found.tried if not tried.kept]
    if broken:
        assert costs[links] - costs[min(broken)] <= max(0.002 * found.source_cost, max(step.saved for step in chain))
    else:
        assert links == len(chain)


@pytest.mark.parametrize("seed", range(6))
def test_found_mix_is_near_the_best_of_all(seed: int) -> None:
    reports, errors = made_up(7, seed)
    trial = Additive(errors)
    budget = Budget(psnr_of(sorted(errors.values())[9]))
    found = search(reports, budget, EXACT, cost, trial)
    names = [own.linear for own in reports[0].layers]
    best = min(
        total(mix, reports)
        for choice in itertools.product(BITS, repeat=len(names))
        if trial(mix := dict(zip(names, choice, strict=True))).psnr_db >= budget.db
    )
    largest = max(own.in_features for own in reports[0].layers) * 3.5
    assert best <= found.cost <= best + largest  # greedy misses at most one link


def test_search_is_deterministic_and_independent_of_the_order_of_reports() -> None:
    reports, errors = made_up(40, seed=3)
    results = [search(r, Budget(44), EXACT, cost, Additive(errors)) for r in (reports, reports, reports[::-1])]
    assert results[0].to_json() == results[1].to_json()
    assert results[0].mix == results[2].mix


def test_tight_budget_backs_off_and_impossible_one_is_a_failed_check() -> None:
    reports, errors = made_up(30, seed=8)
    found = search(reports, Budget(75), EXACT, cost, Additive(errors))
    assert set(found.mix.values()) >= {Action.KEEP}
    assert any(not tried.kept for tried in search(reports, Budget(50), EXACT, cost, Additive(errors, 9.0)).tried)
    with pytest.raises(CheckFailedError, match="no mix keeps the budget of 120dB"):
        search(reports, Budget(120), EXACT, cost, Additive(errors))


def test_quality_budget_counts_the_loss_against_the_truth() -> None:
    reports, errors = made_up(30, seed=5)
    own_mse = mse_of(30)
    source = Score(0.0, own_mse)

    def trial(mix: Mix) -> Score:
        noise = Additive(errors)(mix).mse
        return Score(noise, own_mse + noise)

    found = search(reports, Budget(0.02, of_quality=True), source, cost, trial)
    assert 0 < found.measured_db <= 0.02
    assert found.measured_db == pytest.approx(psnr_of(own_mse) - psnr_of(own_mse + Additive(errors)(found.mix).mse))
    with pytest.raises(UsageError, match="perfect restoration"):
        search(reports, Budget(0.02, of_quality=True), EXACT, cost, trial)


def test_actions_that_are_dearer_or_beaten_never_appear() -> None:
    name = layer(0, Action.WEIGHT_INT8, 1.0).linear
    useless = [layer(0, Action.WEIGHT_INT8, 1e-4), layer(0, Action.WEIGHT_INT4, 1e-5)]  # smaller and better
    assert [step.action for step in build_chain({name: useless}, cost)] == [Action.WEIGHT_INT4]
    assert build_chain({name: useless}, lambda own, action: 1.0) == []
    same = build_chain({name: useless}, lambda own, action: 2.0 if action is Action.KEEP else 1.0)
    assert [step.action for step in same] == [Action.WEIGHT_INT4]
    worse = [layer(0, Action.WEIGHT_INT8, 1e-6), layer(0, Action.WEIGHT_INT4, 1e-3)]
    chain = build_chain({name: worse}, cost)
    assert [step.action for step in chain] == [Action.WEIGHT_INT8, Action.WEIGHT_INT4]
    assert sum(step.error for step in chain) == pytest.approx(1e-3)
    assert mix_of({name: worse}, chain[:1]) == {name: Action.WEIGHT_INT8}
    with pytest.raises(UsageError, match="no layer becomes cheaper"):
        search([Sensitivity("r", "k", (), tuple(worse[:1]))], Budget(40), EXACT, lambda own, action: 1.0, Additive({}))


def test_infinite_psnr_of_a_layer_without_effect_is_free() -> None:
    harmless, harmful = layer(0, Action.WEIGHT_INT4, 0.0), layer(1, Action.WEIGHT_INT4, 1e-3)
    assert math.isinf(harmless.photo_psnr_db)
    errors = {(own.linear, own.action): mse_of(own.photo_psnr_db) for own in (harmless, harmful)}
    found = search([Sensitivity("r", "k", (), (harmful, harmless))], Budget(60), EXACT, cost, Additive(errors))
    assert found.mix == {harmful.linear: Action.KEEP, harmless.linear: Action.WEIGHT_INT4}
    assert found.to_json()["measured_db"] is None
