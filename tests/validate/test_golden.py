"""The reference against recordings: upstream's own where the folder is present, ours everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import GOLDEN, ROOT

from livemoments.errors import FileError
from livemoments.validate.golden import Comparison, Recording, compare
from livemoments.validate.golden_runs import check_reference

UPSTREAM = sorted(path.parent for path in (ROOT.parent / "shared" / "golden").glob("*/meta.json"))
TOOL = ROOT / "tools" / "check_golden.py"


@pytest.mark.parametrize("folder", [GOLDEN, *UPSTREAM], ids=lambda folder: folder.name)
def test_the_reference_reproduces_every_recorded_stage(folder: Path) -> None:
    rows = check_reference(Recording(folder))
    assert len(rows) > 40
    assert [str(row) for row in rows if not row.passed or row.error is None] == []


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_tool_prints_a_line_per_stage_and_fails_past_a_limit(tmp_path: Path) -> None:
    good = run_tool(GOLDEN)
    assert good.returncode == 0, good.stdout + good.stderr
    arrays = dict(np.load(GOLDEN / "expected.npz"))
    assert all(any(f" {name} " in line for line in good.stdout.splitlines()) for name in arrays)

    changed = tmp_path / "changed"
    shutil.copytree(GOLDEN, changed)
    arrays["tile1.step3.velocity"] = arrays["tile1.step3.velocity"] * np.float32(1.0003)
    arrays["ref_patch_coords"] = arrays["ref_patch_coords"] + np.array([[0, 0], [0, 1]])
    np.savez(changed / "expected.npz", **arrays)
    bad = run_tool(changed)
    assert bad.returncode == 1
    failed = [line.split()[1] for line in bad.stdout.splitlines() if line.startswith("FAIL")]
    assert failed == ["ref_patch_coords", "tile1.step3.velocity"]


@pytest.mark.slow
def test_the_tool_names_what_it_cannot_read(tmp_path: Path) -> None:
    result = run_tool(tmp_path / "nothing")
    assert result.returncode == 2
    assert "meta.json" in result.stderr


def test_a_damaged_recording_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(GOLDEN, folder)
    (folder / "expected.npz").write_bytes((GOLDEN / "expected.npz").read_bytes()[:1000])
    with pytest.raises(FileError, match=r"expected\.npz"):
        Recording(folder)


def test_images_must_share_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(GOLDEN / "images", folder)
    next((folder / "ref").iterdir()).rename(folder / "ref" / "other.png")
    with pytest.raises(FileError, match="no file name in common"):
        Recording(GOLDEN, folder)


def test_numbers_are_compared_by_their_kind() -> None:
    floats = np.linspace(-1, 1, 100, dtype=np.float32)
    assert compare("z", floats * np.float32(1.00005), floats, 1e-4).passed
    assert not compare("z", floats * np.float32(1.0002), floats, 1e-4).passed
    assert not compare("z", np.full_like(floats, np.nan), floats, 1e-4).passed
    assert not compare("z", floats[:50], floats, 1e-4).passed
    levels = np.arange(100, dtype=np.uint8)
    assert compare("photo.result", levels + np.uint8(1), levels, 1e-4).passed
    assert not compare("photo.result", levels + np.uint8(2), levels, 1e-4).passed
    corners = np.array([[0, 1], [2, 3]])
    assert not compare("ref_patch_coords", corners + np.array([[0, 0], [0, 1]]), corners, 1e-4).passed


def test_a_stage_never_observed_is_reported_as_not_compared() -> None:
    recording = Recording(GOLDEN)
    rows = list(Comparison(recording, 1e-4).rows("not shown"))
    assert {row.name for row in rows} == set(recording.arrays)
    assert all(row.error is None and row.note == "not shown" for row in rows)


def test_the_recording_says_its_sizes() -> None:
    meta = json.loads((GOLDEN / "meta.json").read_text())
    recording = Recording(GOLDEN)
    assert (recording.tile.width, recording.overlap, recording.steps) == (
        meta["tile_size"],
        meta["tile_overlap"],
        meta["steps"],
    )
