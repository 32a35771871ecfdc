"""validate, whole: a good bundle passes, planted faults close the gate, data sets are gone through, reports written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import planted_faults as faults
import pytest
from cli_support import run
from ladder_support import recording_of
from real_runs import assert_refused

import livemoments
from livemoments.bundle import MANIFEST_NAME, Bundle, open_bundle
from livemoments.checkpoints import trained_bundle, trained_recording
from livemoments.errors import BundleError, UsageError
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size, Stage
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.options import DataOptions, ValidateOptions
from livemoments.validate.recording.store import Recording
from livemoments.validate.report.gate import gate
from livemoments.validate.report.report_json import decode_report
from livemoments.validate.report.terminal_text import report_text
from livemoments.validate.report_data import ValidationReport

FILES = {"report.html", "report.json", "images.csv", "summary.md", "junit.xml"}
_B = "transformer_blocks."
_SLOW = pytest.mark.slow
QUICK = ("--no-cost", "--no-self-checks", "--levels", "block,network")


@pytest.fixture(scope="module")
def recording(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return recording_of(tiny_checkpoint, tmp_path_factory)


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ValidationReport:
    found: ValidationReport = livemoments.validate_bundle(
        tiny_bundle,
        tiny_checkpoint,
        output=tmp_path_factory.getbasetemp() / "report",
        options=ValidateOptions(restore=RestoreOptions(seed=3), check_itself=False),
    )
    return found


def test_a_good_bundle_passes_with_room(report: ValidationReport) -> None:
    assert report.passed
    networks = [rung for rung in report.ladder if rung.level == "network"]
    assert [rung.name for rung in networks] == [str(stage) for stage in Stage]
    assert all(0 < (rung.rel_l2 or 1) < 2e-5 for rung in networks)
    levels = [rung.level for rung in report.ladder]
    assert levels == sorted(levels, key=("block", "network", "step", "tile", "photo").index)
    assert {"block", "network", "step", "tile", "photo"} == set(levels)
    photo = {rung.name: rung for rung in report.ladder if rung.level == "photo"}
    assert photo["stitched"].psnr_db is None or photo["stitched"].psnr_db > 70
    assert (photo["result"].max_abs or 0) <= 1
    assert sum(rung.name.endswith(".decoded") for rung in report.ladder) > 1, "more than one tile"
    assert report.reference == "checkpoint tiny_checkpoint"


def test_the_report_is_files_and_text(report: ValidationReport, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "report"
    assert {path.name for path in folder.iterdir()} >= FILES
    assert decode_report(folder / "report.json") == report
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["schema"] == "livemoments/validation/1"
    text = report_text(report)
    assert "FAIL" not in text
    assert text.splitlines()[-1].startswith("all limits kept")


def test_another_checkpoints_bundle_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", size="tiny", seed=1)
    with pytest.raises(BundleError, match="was not exported from this checkpoint"):
        livemoments.validate_bundle(tiny_bundle, other)


def test_arguments_that_do_not_go_together(tiny_bundle: Path, recording: Recording) -> None:
    with pytest.raises(UsageError, match="two references"):
        livemoments.validate_bundle(tiny_bundle, "c", recording=recording)
    with pytest.raises(UsageError, match="there must be a reference"):
        livemoments.validate_bundle(tiny_bundle, options=ValidateOptions(find_fault=True))


def test_the_gate_opens_for_a_good_bundle(tiny_bundle: Path, recording: Recording) -> None:
    result = run("validate", tiny_bundle, "--recording", recording.path, *QUICK, "--bisect", "--gate")
    assert result.exit_code == 0, result.output
    assert "gate:" not in result.stderr


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        pytest.param(faults.exact_gelu(1), [f"{_B}1 → {_B}1.ff.net.0", "Gelu"], id="wrong GELU", marks=_SLOW),
        pytest.param(
            faults.swapped_weights(f"{_B}2.attn.to_q", f"{_B}2.attn.to_k"),
            [f"{_B}2.attn.to_k", "MatMul"],
            id="swapped weight",
            marks=_SLOW,
        ),
        pytest.param(faults.heads_transposed(1, 4), [f"{_B}1 → {_B}1.attn"], id="transposed keys and values"),
        pytest.param(
            faults.shifted_tables(f"{_B}1.norm1.table"), [f"{_B}1.norm1", "Gather"], id="wrong timestep", marks=_SLOW
        ),
    ],
)
def test_the_gate_closes_for_a_planted_fault_and_names_it(
    tiny_bundle: Path, recording: Recording, tmp_path: Path, fault: Any, words: list[str]
) -> None:
    faulty = faults.plant(tiny_bundle, tmp_path / "faulty", "restoration", fault)
    report = tmp_path / "report"
    arguments = ("validate", faulty.path, "--recording", recording.path, *QUICK, "--bisect", "--gate", "-o", report)
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "gate: " in result.stderr
    assert "restoration" in result.stderr
    for word in words:
        assert word in result.stdout
    (suspect,) = decode_report(report / "report.json").bisection.suspects  # type: ignore[union-attr]
    assert suspect.stage == "restoration"
    assert "failed" in (report / "summary.md").read_text()
    assert "<failure" in (report / "junit.xml").read_text()


def test_recordings_are_compared_without_torch(tmp_path: Path) -> None:
    """In a process in which PyTorch and diffusers cannot be imported, as on a machine that has neither."""
    code = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'diffusers'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from livemoments.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "validate", str(trained_bundle()), "--recording", str(trained_recording())]
    options = ["--no-cost", "--no-self-checks", "--gate", "-o", str(tmp_path / "report")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("parity: 24 of 24 numbers within their limits")
    assert {path.name for path in (tmp_path / "report").iterdir()} >= FILES


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs with ground truth, the second of which cannot be read."""
    folder = write_embedded_set(tmp_path_factory.mktemp("data") / "set", size=Size(192, 192))
    broken = sorted((folder / "lr").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


def test_a_corrupt_image_is_skipped_reported_and_counted(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    arguments = ("validate", tiny_bundle, "--dataset", images, "--no-cost", "--no-self-checks", "-o", report)
    result = run(*arguments, "--flow", "dis", "--steps", 3)
    assert result.exit_code == 1, result.output
    found = decode_report(report / "report.json")
    assert [image.status for image in found.images] == ["ok", "failed", "ok"]
    assert [check.name for check in found.checks if check.status == "fail"] == ["images.failed"]
    assert {metric.name: metric.count for metric in found.metrics} == dict.fromkeys(
        ("psnr_y", "ssim_y", "ms_ssim_y"), 2
    )
    for image in found.images:
        assert all((report / name).is_file() for name in image.files.values())
    journal = (report / "results.jsonl").read_bytes()
    again = run(*arguments, "--flow", "dis", "--steps", 3, "--allow-failed", 1, "--gate")
    assert again.exit_code == 0, again.output
    assert (report / "results.jsonl").read_bytes() == journal, "nothing was done again"
    second = decode_report(report / "report.json")
    assert second.images == found.images
    assert second.metrics == found.metrics


def test_a_baseline_tells_what_became_worse(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    data = DataOptions(images, limit=1, run=RunOptions(pictures=False))
    plain = ValidateOptions(restore=RestoreOptions(flow="dis", steps=3), check_itself=False)

    def against(baseline: Path) -> ValidationReport:
        options = replace(plain, baseline=baseline)
        report: ValidationReport = livemoments.validate_bundle(tiny_bundle, data=data, options=options)
        return report

    first = livemoments.validate_bundle(tiny_bundle, data=data, output=tmp_path / "first", options=plain)
    assert first.passed
    same = against(tmp_path / "first" / "report.json")
    assert same.baseline
    assert same.passed
    better = first.to_json()
    for image in better["images"]:
        image["metrics"]["psnr_y"] += 3
    for metric in better["metrics"]:
        metric["mean"] += 3 * (metric["name"] == "psnr_y")
    (tmp_path / "better.json").write_text(json.dumps(better))
    worse = against(tmp_path / "better.json")
    assert not worse.passed
    assert any("psnr_y" in reason for reason in gate(worse))


def test_a_bad_baseline_is_known_before_the_work(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"schema": "livemoments/parity/1"}')
    result = run("validate", tiny_bundle, "--baseline", tmp_path / "old.json")
    assert_refused(result, tmp_path / "old.json", "livemoments/parity/1")


def test_what_an_inexact_policy_costs_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    frozen = Path(shutil.copytree(tiny_bundle, tmp_path / "frozen", copy_function=os.link))
    manifest = open_bundle(frozen, verify_hashes=False).manifest
    (frozen / MANIFEST_NAME).unlink()
    changed = msgspec.structs.replace(manifest, reference_policy="frozen")
    (frozen / MANIFEST_NAME).write_bytes(msgspec.json.encode(changed))
    options = ValidateOptions(restore=RestoreOptions(steps=3, flow="dis"), check_itself=False)
    report = livemoments.validate_bundle(Bundle.open(frozen), options=options)
    (check,) = [check for check in report.checks if check.name == "policy.psnr_db"]
    assert check.status == "info"
    assert 5 < (check.value or 0) < 60
    assert report.bundle.policy == "frozen"


def test_unusable_data_is_one_error(tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    start = ("validate", tiny_bundle, "--no-cost", "--no-self-checks", "--dataset")
    assert_refused(run(*start, tmp_path / "nowhere"), tmp_path / "nowhere", "no such folder")
    assert_refused(run(*start, images, "--set", "synlive260"), "260")
    assert_refused(run(*start, images, "--metrics", "beauty"), "beauty", "psnr_y")
    assert_refused(run("validate", tiny_bundle, "--recording", images), images)


def test_the_package_can_still_be_called(tiny_bundle: Path, recording: Recording) -> None:
    keywords: dict[str, Any] = {"recording": recording, "clip": None, "check_itself": False, "levels": ("photo",)}
    with pytest.warns(DeprecationWarning, match="validate_bundle"):
        report = livemoments.validate(tiny_bundle, settings=RestoreOptions(seed=3), **keywords)
    assert {rung.level for rung in report.ladder} == {"photo"}
    assert (report.settings["seed"], report.passed) == (3, True)
    with pytest.warns(DeprecationWarning, match="validate_bundle"), pytest.raises(TypeError, match="'colour'"):
        livemoments.validate(tiny_bundle, colour="red")


def test_options_are_checked_before_the_work(tiny_bundle: Path, images: Path) -> None:
    for options, words in (
        (ValidateOptions(cost_runs=-1), "-1 timed runs"),
        (ValidateOptions(levels=("pixel",)), "'pixel' is not a rung"),  # type: ignore[arg-type]
        (ValidateOptions(formats=("pdf",)), "'pdf'"),
    ):
        with pytest.raises(UsageError, match=words):
            livemoments.validate_bundle(tiny_bundle, options=options)
    with pytest.raises(UsageError, match="the package's own metrics"):
        livemoments.validate_bundle(tiny_bundle, data=DataOptions(images, run=RunOptions(metrics=lambda: None)))  # type: ignore[arg-type, return-value]
