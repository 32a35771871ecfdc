"""One phase at a time: which engines are loaded together, and that the picture stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_bundle import make_fake_bundle
from logging_backend import LoggingBackend
from restore_images import FRAME, KEY_FRAME, PHOTO

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime import restore
from livemoments.runtime.engine_pool import PHASES
from livemoments.types import Stage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("residency") / "bundle")


def test_every_stage_is_in_one_phase() -> None:
    assert sorted(stage for phase in PHASES for stage in phase) == sorted(Stage)


@pytest.mark.parametrize("policy", ["per-step", "phase-split", "every-2", "frozen@3"])
@pytest.mark.parametrize("budget_tiles", [1, 100])
def test_phases_never_share_memory_and_change_no_pixel(bundle: Bundle, policy: str, budget_tiles: int) -> None:
    kv_bytes = 2 * 2 * 16 * 8 * 4 * 6  # of a tile: blocks x (key, value) x tokens x width x float32, six steps
    backend = LoggingBackend()
    options = {"reference": policy, "batch": 1, "kv_budget_bytes": kv_bytes * budget_tiles}
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, residency="phases", backend=backend, **options)
    assert all(any(together <= phase for phase in PHASES) for together in backend.most_open)
    assert {stage for together in backend.most_open for stage in together} == set(Stage)
    usual = LoggingBackend()
    expected = restore(bundle, FRAME, PHOTO, KEY_FRAME, backend=usual, **options)
    if policy != "phase-split" or budget_tiles == 1:  # one group of phase-split closes everything by itself
        assert any(not any(together <= phase for phase in PHASES) for together in usual.most_open)
    np.testing.assert_array_equal(found.image, expected.image)


def test_a_frozen_reference_runs_once_a_tile(bundle: Bundle) -> None:
    backend = LoggingBackend()
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, reference="frozen", residency="phases", backend=backend)
    assert len(backend.runs(Stage.REFERENCE)) == len(found.plan.tiles)
    assert backend.events.count(("open", Stage.REFERENCE)) == 1  # all tiles' keys and values fit the budget


def test_the_disk_serves_as_well(bundle: Bundle) -> None:
    options = {"reference": "per-step", "residency": "phases"}
    host, disk = (restore(bundle, FRAME, PHOTO, KEY_FRAME, kv_store=kind, **options) for kind in ("host", "disk"))
    np.testing.assert_array_equal(host.image, disk.image)


def test_an_unknown_residency_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="'half' is no residency"):
        restore(bundle, FRAME, PHOTO, KEY_FRAME, residency="half")


def test_the_restored_file_does_not_depend_on_it(bundle: Bundle, tmp_path: Path) -> None:
    from livemoments.runtime.options import RestoreOptions

    assert RestoreOptions(residency="phases").key() == RestoreOptions().key()
    assert RestoreOptions(residency="phases").arguments() == ["--residency", "phases"]
