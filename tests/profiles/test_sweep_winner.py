"""The winning profile: written, read, and restored with as the point was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fake_bundle import make_fake_bundle
from sweep_samples import sample_point

from livemoments.bundle import Bundle
from livemoments.errors import FileError, UsageError
from livemoments.profiles.apply import option_defaults
from livemoments.profiles.read import NAMES, load_profile, parse_profile
from livemoments.profiles.schema import Chip, Memory
from livemoments.profiles.sweeps.axes import parse_axis
from livemoments.profiles.sweeps.grid import make_grid
from livemoments.profiles.sweeps.winner import profile_of
from livemoments.profiles.write import profile_toml
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size

ONE_THREAD = RestoreOptions(threads=1)
TILE = Size(64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_a_written_profile_reads_as_it_was(name: str) -> None:
    profile = load_profile(name)
    assert parse_profile(profile_toml(profile), "written.toml") == profile


def test_a_written_profile_holds_any_text() -> None:
    evil = 'a "quoted" \\ path\n[engine]\tüñ\x7f😀'
    profile = msgspec.structs.replace(load_profile("h20"), title=evil, note=evil)
    assert parse_profile(profile_toml(profile), "written.toml") == profile


@pytest.mark.parametrize("machine", ["cpu-avx2", "h20"])
def test_a_picked_profile_restores_as_the_point_did(half: Bundle, exact: Bundle, machine: str) -> None:
    values = ("steps=3", "reference=phase-split", "kv-dtype=int8", "batch=2", "residency=phases", "flow=dis")
    (candidate,) = make_grid([half], [parse_axis(value) for value in values], ONE_THREAD, exact).candidates
    profile = profile_of(sample_point("a"), half, candidate.settings, load_profile(machine), "a processor")
    assert profile == parse_profile(profile_toml(profile), "picked.toml")
    assert (profile.kind, profile.engine.provider, profile.base_precision) == ("cpu", "cpu", "fp16")
    if machine == "cpu-avx2":
        assert profile.achieved == load_profile(machine).achieved
    else:  # a GPU's memory and rates say nothing of what was measured on a CPU
        assert (profile.chip, profile.memory) == (Chip(), Memory())
    assert "1.00 s a photo" in profile.note
    defaults = dict(option_defaults(profile, "restore"))
    assert defaults.pop("kv_budget_bytes") == pytest.approx(candidate.settings.kv_budget_bytes, rel=1e-9)
    restored = replace(RestoreOptions(**defaults), tile=TILE, kv_budget_bytes=candidate.settings.kv_budget_bytes)
    assert restored == candidate.settings


def test_a_picked_tile_size_is_kept_where_there_are_several(tmp_path: Path) -> None:
    both = make_fake_bundle(tmp_path / "both", tiles=(Size(96, 96), TILE), precision="fp32")
    (candidate,) = make_grid([both], [parse_axis("tile=64")], ONE_THREAD, both).candidates
    profile = profile_of(sample_point("a"), both, candidate.settings, load_profile("cpu-avx2"), "a processor")
    assert option_defaults(profile, "restore")["tile"] == "64x64"
    wrong = profile_toml(profile).replace(b'tile = "64x64"', b'tile = "64y64"')
    with pytest.raises(FileError, match=r"line \d+, restore\.tile: '64y64' is not a size"):
        parse_profile(wrong, "picked.toml")


def test_windows_and_grids_are_points_of_their_own_and_are_kept(tmp_path: Path) -> None:
    """They are held against whole tiles and exact references, and a picked profile has them."""
    both = make_fake_bundle(tmp_path / "both", tiles=(Size(96, 96), TILE), precision="fp32")
    axes = [parse_axis(text) for text in ("tile=96", "vae-tile=64,96", "pcr-grid=1,4")]
    grid = make_grid([both], axes, ONE_THREAD, both)
    found = [(one.settings.vae_tile, one.settings.pcr_grid) for one in grid.candidates]
    assert found == [(TILE, 1), (TILE, 4), (None, 1), (None, 4)]
    assert {(one.exact.vae_tile, one.exact.pcr_grid) for one in grid.candidates} == {(None, 1)}
    candidate = grid.candidates[1]
    profile = profile_of(sample_point("a"), both, candidate.settings, load_profile("cpu-avx2"), "a processor")
    assert parse_profile(profile_toml(profile), "picked.toml") == profile
    defaults = option_defaults(profile, "restore")
    assert (defaults["tile"], defaults["vae_tile"], defaults["pcr_grid"]) == ("96x96", "64x64", 4)
    wrong = profile_toml(profile).replace(b'vae_tile = "64x64"', b'vae_tile = "large"')
    with pytest.raises(FileError, match=r"line \d+, restore\.vae_tile: 'large' is not a size"):
        parse_profile(wrong, "picked.toml")
    with pytest.raises(UsageError, match="the bundle's VAE has no graphs for 32x32"):
        make_grid([both], [parse_axis("vae-tile=32")], ONE_THREAD, both)
