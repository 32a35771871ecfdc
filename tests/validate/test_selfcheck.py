"""Self-checks: a sound engine passes, and each planted fault of an engine fails the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle, open_bundle
from livemoments.limits import load_limits
from livemoments.runtime.backends.base import Array, Backend, Engine, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import Size, Stage
from livemoments.validate.ladder.selfcheck import self_checks
from livemoments.validate.report_data import Check

LIMITS = load_limits("fp32")
Fault = Callable[[Stage, int, dict[str, np.ndarray]], None]
"""Changes outputs in place; is told the stage and how many runs of it there were before."""


class _Faulty(Backend):
    name, provider = "faulty", "cpu"

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._inner = OrtBackend("cpu", 1)
        self.runs: dict[Stage, int] = {}

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> Engine:
        return _FaultyEngine(self._inner.open(bundle, stage, size), self)

    def spoil(self, stage: Stage, outputs: dict[str, np.ndarray]) -> None:
        self._fault(stage, self.runs.get(stage, 0), outputs)
        self.runs[stage] = self.runs.get(stage, 0) + 1


class _FaultyEngine(Engine):
    def __init__(self, inner: Engine, backend: _Faulty) -> None:
        super().__init__(inner.stage, inner.inputs, inner.outputs)
        self._inner, self._backend = inner, backend

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        outputs = {name: np.array(to_host(array)) for name, array in self._inner.run(inputs).items()}
        self._backend.spoil(self.stage, outputs)
        return dict(outputs)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("selfcheck") / "bundle")


def failed(bundle: Bundle, fault: Fault) -> set[str]:
    checks = self_checks(bundle, backend=_Faulty(fault), limits=LIMITS)
    return {check.name for check in checks if check.status == "fail"}


def test_a_sound_engine_passes(bundle: Bundle) -> None:
    checks = self_checks(bundle, backend=OrtBackend("cpu", 1), limits=LIMITS)
    assert [check.name for check in checks if check.status != "pass"] == []
    names = {check.name for check in checks}
    assert len(names) == len(checks) == 3 * len(Stage) + 4
    assert names > {"self.second_run", "self.tile_order", "self.batch_size", "self.finite", "self.batch_rows.motion"}


def test_a_row_that_differs_from_its_twin(bundle: Bundle) -> None:
    def fault(stage: Stage, _: int, outputs: dict[str, np.ndarray]) -> None:
        if stage is Stage.VAE_ENCODER and len(outputs["mean"]) == 2:
            outputs["mean"][1, 0, 0, 0] += 1e-6

    assert "self.batch_rows.vae_encoder" in failed(bundle, fault)


def test_a_row_that_feels_its_neighbour(bundle: Bundle) -> None:
    def fault(stage: Stage, _: int, outputs: dict[str, np.ndarray]) -> None:
        if stage is Stage.RESTORATION:
            outputs["velocity"] += 1e-2 * outputs["velocity"].mean(axis=0, keepdims=True)

    found = failed(bundle, fault)
    assert "self.batch_neighbours.restoration" in found
    assert "self.batch_rows.restoration" not in found
    assert "self.second_run" not in found


def test_a_run_that_does_not_repeat(bundle: Bundle) -> None:
    def fault(stage: Stage, runs: int, outputs: dict[str, np.ndarray]) -> None:
        if stage is Stage.RESTORATION:
            outputs["velocity"] += np.float32(1e-3 * runs)

    assert {"self.second_run", "self.tile_order"} <= failed(bundle, fault)


def test_a_channel_that_died(bundle: Bundle) -> None:
    def fault(stage: Stage, _: int, outputs: dict[str, np.ndarray]) -> None:
        if stage is Stage.RESTORATION:
            outputs["velocity"][:, 1] = 0
        elif stage is Stage.MOTION:
            for value in outputs.values():
                value[..., 2] = 0

    found = failed(bundle, fault)
    assert {"self.constant_channels.restoration", "self.constant_channels.motion"} <= found
    assert not any("batch" in name or "run" in name for name in found)


def test_outputs_that_are_not_finite_are_a_failed_check(bundle: Bundle) -> None:
    def fault(stage: Stage, _: int, outputs: dict[str, np.ndarray]) -> None:
        if stage is Stage.VAE_DECODER:
            outputs["image"][0, 0, 0, 0] = np.nan

    (check,) = self_checks(bundle, backend=_Faulty(fault), limits=LIMITS)
    assert (check.name, check.status, check.value) == ("self.finite", "fail", None)
    assert "vae_decoder" in check.detail


def test_a_bundle_of_some_stages_has_nothing_to_restore(tmp_path: Path) -> None:
    partial = make_fake_bundle(tmp_path / "bundle", omit=(Stage.FLOW,))
    assert self_checks(partial, limits=LIMITS) == ()


@pytest.mark.slow
def test_a_real_bundle_passes(tiny_bundle: Path) -> None:
    checks: tuple[Check, ...] = self_checks(open_bundle(tiny_bundle))
    assert [check.name for check in checks if check.status != "pass"] == []
