"""validate: a good bundle passes, a changed weight is found, an inexact policy's cost is told."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

import livemoments
from livemoments.bundle import MANIFEST_NAME, hash_file, open_bundle
from livemoments.errors import BundleError
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.validate.parity import ParityReport, PhotoResult, StageResult


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    found: ParityReport = livemoments.validate(
        tiny_bundle, tiny_checkpoint, seed=3, pictures=tmp_path_factory.getbasetemp() / "pictures"
    )
    return found


def test_a_good_bundle_passes_with_room(report: ParityReport) -> None:
    assert report.passed
    assert [stage.stage for stage in report.stages] == [
        "flow",
        "vae_encoder",
        "motion",
        "reference",
        "restoration",
        "vae_decoder",
    ]
    assert all(0 < stage.rel_l2 < 2e-5 for stage in report.stages)
    assert report.photo is not None
    assert report.photo.tiles > 1
    assert report.photo.psnr_db > 70
    assert report.photo.most_levels <= 1
    assert report.photo.exact_policy_psnr_db is None


def test_the_pictures_of_both_are_written(report: ParityReport, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "pictures"
    engine, reference = (np.asarray(Image.open(folder / f"{name}.png")).astype(int) for name in ("engine", "reference"))
    assert np.abs(engine - reference).max() <= 1
    assert engine.std() > 10


def test_the_report_is_json_and_text(report: ParityReport) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["schema"] == "livemoments/parity/1"
    assert document["passed"] is True
    assert len(document["stages"]) == 6
    text = report.to_text()
    assert text.count("ok  ") == 7
    assert text.endswith("all limits kept")


def stage_result(rel_l2: float) -> StageResult:
    return StageResult("motion", "256x256", "fp32", "motion_bias", rel_l2, 0.0, 1e-4)


def photo_result(psnr_db: float) -> PhotoResult:
    return PhotoResult(10, 10, 1, "per-step", psnr_db, 60.0, 0, None, 1.0)


@pytest.mark.parametrize("bad", [2e-4, math.nan, math.inf])
def test_a_stage_past_its_limit_or_not_a_number_fails(bad: float) -> None:
    report = ParityReport("b", "c", "fp32", "cpu", (stage_result(1e-6), stage_result(bad)), None)
    assert not report.passed
    assert "FAIL" in report.to_text()
    assert ParityReport("b", "c", "fp32", "cpu", (stage_result(1e-6),), photo_result(math.inf)).passed
    assert not ParityReport("b", "c", "fp32", "cpu", (stage_result(1e-6),), photo_result(math.nan)).passed
    assert not ParityReport("b", "c", "fp32", "cpu", (stage_result(1e-6),), photo_result(59.9)).passed


def test_another_checkpoints_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", size="tiny", seed=1)
    with pytest.raises(BundleError, match="was not exported from this checkpoint"):
        livemoments.validate(tiny_bundle, other)


def scale_weight(bundle: Path, stage: str, name: str, factor: float) -> None:
    """Change one weight in place and make the manifest's hashes agree, as a buggy exporter would."""
    graph = onnx.load(bundle / stage / "256x256.onnx", load_external_data=False).graph
    tensor = next(t for t in graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    file = bundle / stage / place["location"]
    data = np.memmap(file, np.float32, "r+", int(place["offset"]), (int(place["length"]) // 4,))
    data *= factor
    data.flush()
    manifest = open_bundle(bundle, verify_hashes=False).manifest
    files = manifest.files | {f"{stage}/{place['location']}": hash_file(file)}
    changed = msgspec.structs.replace(manifest, files=files, reference_policy="frozen")
    (bundle / MANIFEST_NAME).write_bytes(msgspec.json.encode(changed))


@pytest.mark.slow
def test_a_changed_weight_fails_its_stage_and_a_frozen_reference_is_told(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    scale_weight(changed, "restoration", "transformer_blocks.2.ff.net.2.weight", 1.01)
    report = livemoments.validate(changed, tiny_checkpoint)
    assert [stage.stage for stage in report.stages if not stage.passed] == ["restoration"]
    assert not report.passed
    assert report.photo is not None
    assert report.photo.policy == "frozen"
    assert report.photo.exact_policy_psnr_db is not None
    assert report.photo.exact_policy_psnr_db < 60
