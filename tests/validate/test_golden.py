"""The reference and an engine against recordings: upstream's own where the folder is present, ours everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import planted_faults as faults
import pytest
from ladder_support import Without, recording_of
from places import GOLDEN, ROOT

from livemoments.bundle import Bundle, open_bundle
from livemoments.errors import FileError
from livemoments.types import Stage
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.recorded_runs import recorded_runs
from livemoments.validate.ladder.reproduction import check_reference, check_tensor
from livemoments.validate.recording.golden_format import GoldenRecording
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import Rung

UPSTREAM = sorted(path.parent for path in (ROOT.parent / "shared" / "golden").glob("*/meta.json"))
TOOL = ROOT / "tools" / "check_golden.py"


@pytest.mark.parametrize("folder", [GOLDEN, *UPSTREAM], ids=lambda folder: folder.name)
def test_the_reference_reproduces_every_recorded_stage(folder: Path) -> None:
    recording = GoldenRecording(folder)
    with recording.checkpoint() as checkpoint:
        checks = check_reference(recording, checkpoint)
    assert len(checks) > 40
    assert {check.name for check in checks} == set(recording.names(recording.images[0]))
    assert [check for check in checks if check.status != "pass"] == []


def test_the_reference_reproduces_a_recording_under_the_runtimes_conditions(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recording = recording_of(tiny_checkpoint, tmp_path_factory)
    checks = check_reference(Without(recording, r"\.module\.|\.block\d|embed|motion_bias"), tiny_checkpoint)
    assert len(checks) > 40
    assert [check for check in checks if check.status != "pass"] == []


def test_a_tile_without_noise_is_left_out_and_so_is_the_photo() -> None:
    recording = GoldenRecording(GOLDEN)
    with recording.checkpoint() as checkpoint:
        checks = check_reference(Without(recording, r"tile1\.noise"), checkpoint)
    others = [check.name for check in checks if check.status != "pass"]
    assert {name.split(".")[0] for name in others} == {"tile1", "photo"}
    assert {check.detail for check in checks if check.name.startswith("photo.") and check.status != "pass"} == {
        "the recording has the noise of some tiles only"
    }
    assert "photo.flow_lr" not in others


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
def test_the_tool_names_what_it_cannot_read(tmp_path: Path, tiny_bundle: Path) -> None:
    result = run_tool(tmp_path / "nothing")
    assert result.returncode == 2
    assert "meta.json" in result.stderr
    other = tmp_path / "other"
    shutil.copytree(GOLDEN, other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps({**meta, "make_checkpoint": {"size": "tiny", "seed": 1}}))
    result = run_tool(other, "--engine", tiny_bundle)
    assert result.returncode == 2
    assert "was not exported from this checkpoint" in result.stderr


def test_a_damaged_recording_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(GOLDEN, folder)
    (folder / "expected.npz").write_bytes((GOLDEN / "expected.npz").read_bytes()[:1000])
    with pytest.raises(FileError, match=r"expected\.npz"):
        GoldenRecording(folder)


def test_images_must_share_one_name(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(GOLDEN / "images", folder)
    assert GoldenRecording(GOLDEN, folder).live_photo("photo").frame.resolve() == folder / "lr" / "photo.png"
    next((folder / "ref").iterdir()).rename(folder / "ref" / "other.png")
    with pytest.raises(FileError, match="no file name in common"):
        GoldenRecording(GOLDEN, folder)


def test_numbers_are_compared_by_their_kind() -> None:
    def recorded_runs(name: str, value: np.ndarray, expected: np.ndarray) -> bool:
        return check_tensor(name, value, expected, 1e-4).status == "pass"

    floats = np.linspace(-1, 1, 100, dtype=np.float32)
    assert recorded_runs("z", floats * np.float32(1.00005), floats)
    assert not recorded_runs("z", floats * np.float32(1.0002), floats)
    assert not recorded_runs("z", np.full_like(floats, np.nan), floats)
    assert not recorded_runs("z", floats[:50], floats)
    levels = np.arange(100, dtype=np.uint8)
    assert recorded_runs("photo.result", levels + np.uint8(1), levels)
    assert not recorded_runs("photo.result", levels + np.uint8(2), levels)
    corners = np.array([[0, 1], [2, 3]])
    assert recorded_runs("ref_patch_coords", corners.copy(), corners)
    assert not recorded_runs("ref_patch_coords", corners + np.array([[0, 0], [0, 1]]), corners)


def test_the_recording_says_its_sizes() -> None:
    meta = json.loads((GOLDEN / "meta.json").read_text())
    recorded = GoldenRecording(GOLDEN).meta
    assert (recorded.tile.width, recorded.settings.overlap, recorded.settings.steps) == (
        meta["tile_size"],
        meta["tile_overlap"],
        meta["steps"],
    )


# --- an engine


def rungs_of(bundle: Bundle, recording: Recording) -> dict[str, Rung]:
    rungs = compare(bundle, recording, levels=("network", "step", "tile", "photo"))
    return {f"{rung.level} {rung.name}": rung for rung in rungs}


def test_an_engine_is_held_against_a_golden_recording(tiny_bundle: Path, tmp_path: Path) -> None:
    recording = open_recording(GOLDEN)
    good = rungs_of(open_bundle(tiny_bundle), recording)
    # neither tile images nor all keys and values of a step were recorded: the whole restoration tells
    networks = {f"network {stage}" for stage in ("flow", "vae_encoder", "motion", "reference", "restoration")}
    assert {name for name, rung in good.items() if rung.status == "info"} == networks
    assert [rung for rung in good.values() if rung.status == "fail"] == []
    compared = {f"step step{step}.velocity" for step in range(6)} | {"tile flow", "tile z_out", "photo result"}
    assert compared | {"network vae_decoder", "tile tile1.decoded", "photo stitched"} <= set(good) - networks

    fault = faults.swapped_weights("transformer_blocks.2.attn.to_q", "transformer_blocks.2.attn.to_k")
    faulty = faults.plant(tiny_bundle, tmp_path / "faulty", "restoration", fault)
    bad = {name for name, rung in rungs_of(faulty, recording).items() if rung.status == "fail"}
    assert {"step step0.velocity", "step step5.velocity", "tile z_out"} <= bad
    assert not bad & {"network vae_decoder", "tile flow", "tile z_init"}


def test_a_recording_of_a_part_of_the_keys_and_values_has_no_run_of_the_transformers(tiny_bundle: Path) -> None:
    recording, bundle = open_recording(GOLDEN), open_bundle(tiny_bundle)
    assert recording.has("photo", "tile0.step0.kv.transformer_blocks.0.attn.to_k")
    assert list(recorded_runs(recording, "photo", bundle, Stage.REFERENCE)) == []
