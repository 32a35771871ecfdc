"""The sampler under every reference policy: its arithmetic, what runs when, and what is loaded when."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError, UsageError
from livemoments.runtime.backends.base import to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.keys_values.content_cache import KvCache
from livemoments.runtime.keys_values.step_store import open_store
from livemoments.runtime.sampler import LatentBatch, PhaseSplitSampler, ResidentSampler, Sampler
from livemoments.runtime.schedule import plan_steps
from livemoments.types import ReferencePolicy, Size, Stage, TensorSpec, Tile

TILE = Size(64, 64)
STEPS = 6
KV_BYTES = 2 * 2 * 16 * 8 * 4  # blocks x (key, value) x tokens x width x float32
ROUNDING = 1e-6


class Counter:
    """A progress task that adds up."""

    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount


@pytest.fixture(scope="module", params=["per-block", "stacked"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("sampler") / "bundle", layout=request.param)


def make_batch(count: int, seed: int = 0, first: int = 0, content: bool = False) -> LatentBatch:
    rng = np.random.default_rng(seed)
    return LatentBatch(
        tiles=tuple(Tile(first + i, 0, 48 * i, 64, 64) for i in range(count)),
        latent=rng.standard_normal((count, 16, 8, 8)).astype(np.float32),
        reference=rng.standard_normal((count, 16, 8, 8)).astype(np.float32),
        flow=rng.standard_normal((count, 2, 64, 64)).astype(np.float32),
        content=tuple(f"{seed}-{first + i}" for i in range(count)) if content else (),
    )


def pool_of(bundle: Bundle, backend: LoggingBackend | None = None) -> EnginePool:
    return EnginePool(bundle, backend or LoggingBackend(), TILE)


def resident(pool: EnginePool, policy: str, **options: Any) -> ResidentSampler:
    schedule = pool.bundle.manifest.schedule
    return ResidentSampler(pool, schedule, plan_steps(schedule), ReferencePolicy.parse(policy), **options)


def sample(sampler: Sampler, *batches: LatentBatch) -> list[np.ndarray]:
    return sampler.sample(batches, Counter())


def by_hand(bundle: Bundle, batch: LatentBatch, policy: str) -> np.ndarray:
    """The sampler's definition, straight from the engines, in float64."""
    backend = OrtBackend("cpu", 1)
    engines = {s: backend.open(bundle, s, TILE) for s in (Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION)}

    def run(stage: Stage, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {n: to_host(a) for n, a in engines[stage].run(engines[stage].cast(inputs)).items()}

    levels = [
        3 * s / (1 + 2 * s) for s in (0.077, 0.062, 0.047, 0.032, 0.017, 0.001, 0.0)
    ]  # entries 923, 938, … 999, and 0
    motion = run(Stage.MOTION, flow=batch.flow)
    z = batch.latent.astype(np.float64)
    for step, source in enumerate(ReferencePolicy.parse(policy).source_steps(STEPS)):
        kv = run(Stage.REFERENCE, latent=batch.reference, step=np.array(source))
        velocity = run(Stage.RESTORATION, latent=z, step=np.array(step), **kv, **motion)["velocity"]
        z = z + (levels[step + 1] - levels[step]) * velocity
    return z


def relative_l2(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("policy", ["per-step", "every-2", "every-4", "frozen", "frozen@3"])
def test_resident_policies_follow_the_definition(bundle: Bundle, policy: str) -> None:
    batch = make_batch(2, seed=1)
    with pool_of(bundle) as pool:
        (z,) = sample(resident(pool, policy), batch)
    assert z.dtype == np.float32
    assert relative_l2(z, by_hand(bundle, batch, policy)) < 1e-5
    if policy != "per-step":
        assert relative_l2(z, by_hand(bundle, batch, "per-step")) > 1e-3


@pytest.mark.parametrize(
    ("policy", "points"),
    [
        ("per-step", [0, 1, 2, 3, 4, 5]),
        ("every-2", [0, 2, 4]),
        ("every-4", [0, 4]),
        ("frozen", [0]),
        ("frozen@3", [3]),
    ],
)
def test_the_reference_runs_when_the_policy_says(bundle: Bundle, policy: str, points: list[int]) -> None:
    log = LoggingBackend()
    task = Counter()
    with pool_of(bundle, log) as pool:
        resident(pool, policy).sample([make_batch(3)], task)
    assert [step for _, step, _, _ in log.runs(Stage.REFERENCE)] == points
    assert [step for _, step, _, _ in log.runs(Stage.RESTORATION)] == list(range(STEPS))
    assert len(log.runs(Stage.MOTION)) == 1
    assert task.done == 3 * STEPS


def test_keys_values_and_motion_stay_on_the_device(bundle: Bundle) -> None:
    log = LoggingBackend()
    with pool_of(bundle, log) as pool:
        sample(resident(pool, "per-step"), make_batch(2))
    kv = [s.name for s in bundle.graph(Stage.REFERENCE, TILE).outputs]
    assert all(kept for _, _, kept, _ in log.runs(Stage.REFERENCE))
    assert all(on_device == sorted([*kv, "motion_bias"]) for _, _, _, on_device in log.runs(Stage.RESTORATION))


@pytest.mark.parametrize("kind", ["host", "disk"])
def test_phase_split_equals_per_step_and_never_holds_both_networks(bundle: Bundle, kind: Any, tmp_path: Path) -> None:
    batches = [make_batch(2, seed=3), make_batch(1, seed=4, first=2)]
    with pool_of(bundle) as pool:
        wanted = sample(resident(pool, "per-step"), *batches)
    log = LoggingBackend()
    task = Counter()
    schedule = bundle.manifest.schedule
    policy = ReferencePolicy.parse("phase-split")
    with pool_of(bundle, log) as pool, open_store(kind, parent=tmp_path) as store:
        sampler = PhaseSplitSampler(
            pool, schedule, plan_steps(schedule), policy, store=store, budget_bytes=3 * STEPS * KV_BYTES
        )
        assert sampler.batches_per_group(1) == 3
        assert sampler.batches_per_group(2) == 1
        found = sampler.sample(batches, task)
        again = sampler.sample(batches[:1], Counter())
        assert store.nbytes == 0
        assert not pool.is_open(Stage.RESTORATION)
    for z, z_wanted in zip([*found, *again], [*wanted, wanted[0]], strict=True):
        assert relative_l2(z, z_wanted) < ROUNDING
    assert task.done == pytest.approx(3 * STEPS)
    assert not any({Stage.REFERENCE, Stage.RESTORATION} <= together for together in log.most_open)
    transformers = [e[:2] for e in log.events if e[0] != "run" and e[1] in (Stage.REFERENCE, Stage.RESTORATION)]
    one_group = [(what, s) for s in (Stage.REFERENCE, Stage.RESTORATION) for what in ("open", "close")]
    assert transformers == one_group * 2


def test_phase_split_with_half_precision_storage_is_close_but_not_equal(bundle: Bundle) -> None:
    schedule = bundle.manifest.schedule
    batch = make_batch(2, seed=5)
    results = []
    for codec in ("native", "float16"):
        with pool_of(bundle) as pool, open_store("host", codec=codec) as store:
            policy = ReferencePolicy.parse("phase-split")
            sampler = PhaseSplitSampler(pool, schedule, plan_steps(schedule), policy, store=store, budget_bytes=1 << 30)
            per_tile = KV_BYTES // (2 if codec == "float16" else 1)
            assert sampler.batches_per_group(1) == (1 << 30) // (per_tile * STEPS)
            results += sample(sampler, batch)
    assert 0 < relative_l2(results[1], results[0]) < 1e-3


def test_a_batch_beyond_the_budget_fails_early_on_the_host_only(bundle: Bundle, tmp_path: Path) -> None:
    schedule = bundle.manifest.schedule
    policy = ReferencePolicy.parse("phase-split")
    for kind in ("host", "disk"):
        log = LoggingBackend()
        with pool_of(bundle, log) as pool, open_store(kind, parent=tmp_path) as store:  # type: ignore[arg-type]
            sampler = PhaseSplitSampler(
                pool, schedule, plan_steps(schedule), policy, store=store, budget_bytes=STEPS * KV_BYTES
            )
            if kind == "host":
                with pytest.raises(ResourceError, match="--batch 1"):
                    sampler.batches_per_group(2)
            else:
                assert sampler.batches_per_group(2) == 1
        assert log.events == []


@pytest.mark.parametrize("failing", [Stage.REFERENCE, Stage.RESTORATION])
def test_interrupted_phase_split_closes_both_networks_and_empties_the_store(bundle: Bundle, failing: Stage) -> None:
    def interrupt(stage: Stage, number: int) -> None:
        if stage is failing and number == 2:
            raise KeyboardInterrupt

    log = LoggingBackend(interrupt)
    schedule = bundle.manifest.schedule
    policy = ReferencePolicy.parse("phase-split")
    with pool_of(bundle, log) as pool, open_store("host") as store:
        sampler = PhaseSplitSampler(pool, schedule, plan_steps(schedule), policy, store=store, budget_bytes=1 << 30)
        with pytest.raises(KeyboardInterrupt):
            sample(sampler, make_batch(1))
        assert store.nbytes == 0
        assert log.open_now <= {Stage.MOTION}
    assert log.open_now == set()


@pytest.mark.parametrize("policy", ["per-step", "phase-split"])
def test_cached_keys_and_values_replace_the_reference(bundle: Bundle, policy: str, tmp_path: Path) -> None:
    batch = make_batch(2, seed=6, content=True)
    extra = make_batch(1, seed=7, first=2, content=True)
    both = LatentBatch(
        tiles=(*batch.tiles, *extra.tiles),
        content=(*batch.content, *extra.content),
        **{n: np.concatenate([getattr(batch, n), getattr(extra, n)]) for n in ("latent", "reference", "flow")},
    )
    schedule = bundle.manifest.schedule

    def run(data: LatentBatch) -> tuple[np.ndarray, list[int]]:
        log = LoggingBackend()
        cache = KvCache(tmp_path)
        with pool_of(bundle, log) as pool, open_store("host") as store:
            sampler: Sampler = resident(pool, "per-step", cache=cache)
            if policy == "phase-split":
                parsed = ReferencePolicy.parse(policy)
                sampler = PhaseSplitSampler(
                    pool, schedule, plan_steps(schedule), parsed, store=store, budget_bytes=1 << 30, cache=cache
                )
            (z,) = sample(sampler, data)
        return z, [batch for batch, _, _, _ in log.runs(Stage.REFERENCE)]

    first, runs = run(batch)
    assert runs == [2] * STEPS
    assert relative_l2(first, by_hand(bundle, batch, "per-step")) < 1e-5
    again, runs = run(batch)
    assert runs == []  # not even loaded
    np.testing.assert_array_equal(again, first)
    mixed, runs = run(both)
    assert runs == [1] * STEPS  # only the tile that is new
    assert relative_l2(mixed, by_hand(bundle, both, "per-step")) < 1e-5
    changed, runs = run(dataclasses.replace(batch, content=("x", "y")))
    assert runs == [2] * STEPS
    np.testing.assert_array_equal(changed, first)


def test_the_observer_sees_every_step_of_every_tile(bundle: Bundle) -> None:
    seen: dict[str, np.ndarray] = {}
    batch = make_batch(2, first=4)
    with pool_of(bundle) as pool:
        (z,) = sample(resident(pool, "frozen", observer=lambda name, value: seen.update({name: value})), batch)
    kv = [spec.name for spec in bundle.graph(Stage.REFERENCE, TILE).outputs]
    steps = [f"tile{i}.step{s}.{name}" for i in (4, 5) for s in range(STEPS) for name in ("velocity", *kv)]
    assert set(seen) == {*steps, "tile4.z_out", "tile5.z_out"}
    np.testing.assert_array_equal(seen["tile5.z_out"], z[1:])
    latents = [value for name, value in seen.items() if name.endswith(("velocity", "z_out"))]
    assert all(value.shape == (1, 16, 8, 8) for value in latents)
    for name in kv:
        first, second = (seen[f"tile{i}.step0.{name}"] for i in (4, 5))
        assert first.shape[0] == 1
        assert not np.array_equal(first, second), "each tile has its own keys and values"
        np.testing.assert_array_equal(seen[f"tile5.step{STEPS - 1}.{name}"], second)  # frozen


def test_fewer_steps_use_the_points_of_the_plan(bundle: Bundle) -> None:
    log = LoggingBackend()
    schedule = bundle.manifest.schedule
    plan = plan_steps(schedule, 3)
    with pool_of(bundle, log) as pool:
        sample(ResidentSampler(pool, schedule, plan, ReferencePolicy.parse("every-2")), make_batch(1))
    assert [step for _, step, _, _ in log.runs(Stage.RESTORATION)] == list(plan)
    assert [step for _, step, _, _ in log.runs(Stage.REFERENCE)] == [plan[0], plan[2]]


def test_a_frozen_step_that_is_not_sampled_is_refused(bundle: Bundle) -> None:
    with pool_of(bundle) as pool, pytest.raises(UsageError, match="frozen@6"):
        resident(pool, "frozen@6")


def test_an_input_that_nothing_produces_is_named(bundle: Bundle) -> None:
    entry = bundle.stage(Stage.RESTORATION)
    graph = msgspec.structs.replace(
        entry.graphs[0], inputs=(*entry.graphs[0].inputs, TensorSpec("depth", "float32", ("batch",)))
    )
    stages = {**bundle.manifest.stages, "restoration": msgspec.structs.replace(entry, graphs=(graph,))}
    changed = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, stages=stages))
    with pool_of(changed) as pool, pytest.raises(EngineError, match="depth"):
        resident(pool, "per-step")
