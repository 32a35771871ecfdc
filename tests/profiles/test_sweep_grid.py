"""Which points a sweep has: combinations, what is refused before any work, the exact bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fake_bundle import make_fake_bundle

from livemoments.bundle import MANIFEST_NAME, Bundle
from livemoments.errors import UsageError
from livemoments.manifest import FileEntry
from livemoments.profiles.sweeps.axes import parse_axis
from livemoments.profiles.sweeps.grid import find_exact, make_grid
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size

ONE_THREAD = RestoreOptions(threads=1)
TILE = Size(64, 64)


def test_every_bundle_meets_every_combination(exact: Bundle, half: Bundle) -> None:
    grid = make_grid(
        [exact, half], [parse_axis("steps=6,3"), parse_axis("reference=per-step,frozen")], ONE_THREAD, exact
    )
    assert [str(one) for one in grid.candidates] == [
        f"{bundle} steps={steps} reference={policy}"
        for bundle in ("exact", "half")
        for steps in (6, 3)
        for policy in ("per-step", "frozen")
    ]
    assert {one.exact for one in grid.candidates} == {grid.candidates[0].exact}
    assert grid.candidates[0].exact.key() == grid.candidates[0].settings.key()


def test_combinations_of_the_same_work_are_one_point(exact: Bundle) -> None:
    axes = [parse_axis("kv-dtype=native,int8,fp8"), parse_axis("reference=per-step,phase-split")]
    grid = make_grid([exact], axes, ONE_THREAD, exact)
    found = {(one.settings.reference, one.settings.kv_dtype) for one in grid.candidates}
    assert found == {("per-step", "native"), *(("phase-split", kind) for kind in ("native", "int8", "fp8"))}
    assert grid.merged == 2
    phases = make_grid([exact], [*axes[:1], parse_axis("residency=phases")], ONE_THREAD, exact)
    assert len(phases.candidates) == 3
    assert make_grid([exact], [parse_axis("steps=6"), parse_axis("tile=64")], ONE_THREAD, exact).merged == 0
    policies = parse_axis("reference=per-step,every-1,every-2,every-3,frozen,frozen@1,phase-split")
    three = make_grid([exact], [parse_axis("steps=3"), policies], ONE_THREAD, exact)
    found_policies = [one.settings.reference for one in three.candidates]
    assert found_policies == ["per-step", "every-2", "frozen", "frozen@1", "phase-split"]


def test_impossible_points_are_all_named(exact: Bundle, half: Bundle) -> None:
    axes = [parse_axis("steps=6,9,1"), parse_axis("reference=per-step,frozen@2")]
    with pytest.raises(UsageError) as caught:
        make_grid([exact, half], axes, ONE_THREAD, exact)
    said = caught.value.message
    assert said.startswith("6 of 12 points cannot be measured")
    for point in ("steps=9 reference=per-step", "steps=9 reference=frozen@2", "steps=1 reference=frozen@2"):
        assert f"exact {point}: " in said
        assert f"half {point}: " in said
    assert "frozen@2 names a step" in said
    assert "or leave them out" in str(caught.value.fix)


def test_a_provider_that_is_not_there_is_known_beforehand(exact: Bundle) -> None:
    with pytest.raises(UsageError, match=r"2 of 2 points cannot be measured: exact steps=6: .*nosuch"):
        make_grid([exact], [parse_axis("steps=6,1")], replace(ONE_THREAD, provider="nosuch"), exact)


def test_a_tile_must_be_in_both_bundles(exact: Bundle, tmp_path: Path) -> None:
    large = make_fake_bundle(tmp_path / "large", tiles=(Size(96, 96), TILE))
    with pytest.raises(UsageError, match="it has 96x96, 64x64 tiles, the exact bundle 64x64"):
        make_grid([large], [], ONE_THREAD, exact)
    with pytest.raises(UsageError, match="no graphs for 96x96"):
        make_grid([large], [parse_axis("tile=96")], ONE_THREAD, exact)
    assert make_grid([large], [parse_axis("tile=64")], ONE_THREAD, exact).candidates[0].settings.tile == TILE


def test_what_is_compared_is_of_one_checkpoint(exact: Bundle, tmp_path: Path) -> None:
    other = make_fake_bundle(tmp_path / "other")
    source = msgspec.structs.replace(other.manifest.source, files={"a": FileEntry(sha256="0" * 64, bytes=1)})
    manifest = msgspec.structs.replace(other.manifest, source=source)
    (other.path / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(UsageError, match="different checkpoints"):
        make_grid([Bundle.open(other.path)], [], ONE_THREAD, exact)


def test_the_exact_bundle_is_found_or_asked_for(exact: Bundle, half: Bundle) -> None:
    assert find_exact([half, exact]) is exact
    with pytest.raises(UsageError, match="none of the bundles is fp32"):
        find_exact([half])
    with pytest.raises(UsageError, match="'steps' is swept twice"):
        make_grid([exact], [parse_axis("steps=6"), parse_axis("steps=1")], ONE_THREAD, exact)
