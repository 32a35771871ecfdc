"""What each command passes on to its back-end, and what it prints of the answer."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import Report, error_of, run, stand_in
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle
from livemoments.errors import ParityError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.keys_values.content_cache import CacheUse
from livemoments.runtime.options import RestoreOptions
from livemoments.types import ReferencePolicy, Size, Stage
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.options import DataOptions, ValidateOptions
from livemoments.validate.report_data import BundleInfo, Check, Status, ValidationReport


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("cli") / "bundle")


def test_export_passes_everything_on(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    backend = stand_in(monkeypatch, "livemoments.export.pipeline:export_bundle", bundle)
    result = run("export", "weights", "-o", "out")
    assert (result.exit_code, backend.positional) == (0, (Path("weights"), Path("out")))
    progress = backend.options.pop("progress")
    with progress.task("anything"):
        assert backend.options == {
            "target": "onnx",
            "precision": "fp32",
            "tiles": None,
            "overlap": None,
            "steps": (1, 2, 3, 4, 6),
            "reference_policy": "per-step",
            "kv_layout": "per-block",
            "stages": None,
            "overwrite": False,
            "verify": "full",
            "blocks_per_package": 6,
            "vae_tiles": (),
            "flow_sizes": (),
        }
    options = "--precision fp16 --tile 256x128 --tile 64 --tile 64x64 --overlap 32 --steps 6,2 --reference every-2"
    more = "--kv-layout stacked --stages restoration,reference --overwrite --verify none -q "
    more += "--blocks-per-package 2 --flow-size 1440x1080 --vae-tile 64x32"
    assert run("export", "weights", "-o", "out", *options.split(), *more.split()).exit_code == 0
    del backend.options["progress"]
    assert backend.options == {
        "target": "onnx",
        "precision": "fp16",
        "tiles": (Size(128, 256), Size(64, 64)),
        "overlap": 32,
        "steps": (2, 6),
        "reference_policy": "every-2",
        "kv_layout": "stacked",
        "stages": (Stage.REFERENCE, Stage.RESTORATION),
        "overwrite": True,
        "verify": "none",
        "blocks_per_package": 2,
        "vae_tiles": (Size(32, 64),),
        "flow_sizes": (Size(1080, 1440),),
    }


def test_export_prints_what_it_wrote(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    stand_in(monkeypatch, "livemoments.export.pipeline:export_bundle", bundle)
    result = run("export", "weights", "-o", "out")
    assert f"wrote {bundle.path}: onnx" in result.stdout
    assert "chatter" not in result.stdout
    assert "chatter" in result.stderr
    document = json.loads(run("export", "weights", "-o", "out", "--json").stdout)
    assert document == json.loads(run("inspect", bundle.path, "--json").stdout)


def test_a_failed_gate_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        monkeypatch, "livemoments.export.pipeline:export_bundle", ParityError("stage 'motion' is off", fix="use fp32")
    )
    result = run("export", "weights", "-o", "out", "--json")
    assert result.exit_code == 1
    assert result.stderr.endswith("error: stage 'motion' is off\n  fix: use fp32\n")
    assert error_of(result)["type"] == "ParityError"


def test_make_checkpoint_passes_everything_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x" * 1500)
    backend = stand_in(monkeypatch, "livemoments.reference.random_checkpoint:make_checkpoint", tmp_path)
    result = run("make-checkpoint", tmp_path, "--size", "mid", "--seed", 7, "--dtype", "float16", "--overwrite")
    assert result.stdout == f"wrote {tmp_path}: mid, seed 7, float16, 1 file, 1.5 kB\n"
    del backend.options["progress"]
    assert backend.positional == (tmp_path,)
    assert backend.options == {"size": "mid", "seed": 7, "dtype": "float16", "overwrite": True}
    expected = {"checkpoint": str(tmp_path), "size": "tiny", "seed": 0, "dtype": "float32", "bytes": 1500, "files": 1}
    assert json.loads(run("make-checkpoint", tmp_path, "--json").stdout) == expected


@pytest.fixture
def restored() -> types.SimpleNamespace:
    timings = types.SimpleNamespace(stages={"flow": types.SimpleNamespace(seconds=0.25, count=2)}, tile_seconds=[1.5])
    metadata = {"tiles": 1, "tile": "64x64", "steps": 6, "reference_policy": "frozen", "flow": "dis"}
    return types.SimpleNamespace(
        image=np.zeros((48, 64, 3), np.uint8),
        metadata={**metadata, "photo_frame": "given"},
        timings=timings,
        cache=CacheUse(hits=3, misses=1, dropped=0),
    )


def test_restore_passes_everything_on(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, restored: Any, tmp_path: Path
) -> None:
    backend = stand_in(monkeypatch, "livemoments.runtime.restore:restore", restored)
    images = ("--frame", "f.png", "--photo", "p.jpg")
    assert run("restore", bundle.path, *images, "-o", tmp_path / "x.png").exit_code == 0
    opened, live, given = backend.positional
    assert opened.manifest == bundle.manifest
    assert live == LivePhoto(Path("f.png"), Path("p.jpg"), None)
    assert backend.options["output"] == tmp_path / "x.png"
    defaults = {
        "steps": None,
        "seed": 0,
        "compat": None,
        "provider": "cpu",
        "threads": None,
        "gpu_memory_bytes": None,
        "cuda_graphs": False,
        "reference": None,
        "flow": None,
        "tile_plan": None,
        "tile": None,
        "batch": 1,
        "pad_small": False,
        "no_pcr": False,
        "vae_tile": None,
        "pcr_grid": 1,
        "kv_cache_budget_bytes": 64 << 30,
        "kv_store": "host",
        "residency": "all",
        "kv_dtype": "native",
        "kv_budget_bytes": 4 << 30,
        "kv_cache": None,
        "bit_depth": None,
        "quality": 95,
    }
    assert given == RestoreOptions(**defaults) == RestoreOptions()
    options = (
        "--photo-frame v.png --steps 3 --seed 9 --compat upstream --provider cuda --threads 2 --reference frozen@1 "
        "--flow dis --tile-plan upstream --tile 128x64 --batch 4 --pad-small --no-pcr --kv-store disk "
        "--kv-dtype float16 --kv-budget 1.5GB --kv-cache cache --bit-depth 16 --quality 80 --residency phases "
        "--gpu-memory 6GiB --cuda-graphs "
        "--vae-tile 64x32 --pcr-grid 16 --kv-cache-budget 2GiB"
    )
    assert run("restore", bundle.path, *images, "-o", tmp_path / "x.png", *options.split()).exit_code == 0
    _, live, given = backend.positional
    assert live.photo_frame == Path("v.png")
    wanted = {
        "steps": 3,
        "seed": 9,
        "compat": "upstream",
        "provider": "cuda",
        "threads": 2,
        "gpu_memory_bytes": 6 << 30,
        "cuda_graphs": True,
        "reference": ReferencePolicy("frozen", frozen_step=1),
        "flow": "dis",
        "tile_plan": "upstream",
        "tile": Size(64, 128),
        "batch": 4,
        "pad_small": True,
        "no_pcr": True,
        "vae_tile": Size(32, 64),
        "pcr_grid": 16,
        "kv_cache_budget_bytes": 2 << 30,
        "kv_store": "disk",
        "residency": "phases",
        "kv_dtype": "float16",
        "kv_budget_bytes": 1_500_000_000,
        "kv_cache": Path("cache"),
        "bit_depth": 16,
        "quality": 80,
    }
    assert given == RestoreOptions(**wanted)
    assert wanted.keys() == RestoreOptions().to_json().keys(), "an option that the command lacks"


def test_restore_prints_what_it_did(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, restored: Any) -> None:
    stand_in(monkeypatch, "livemoments.runtime.restore:restore", restored)
    arguments = ("restore", bundle.path, "--frame", "f.png", "--photo", "p.jpg", "-o", "x.png")
    text = run(*arguments).stdout
    assert text.startswith("wrote x.png: 64x48 in ")
    assert "1 tile of 64x64, 6 steps, reference frozen, flow by dis, photo frame given" in text
    assert "keys and values: 3 of 4 (a tile at a step) were kept" in text
    document = json.loads(run(*arguments, "--json").stdout)
    assert document.pop("seconds") >= 0
    assert document == {
        "output": "x.png",
        "width": 64,
        "height": 48,
        "metadata": restored.metadata,
        "timings": {"stages": {"flow": {"seconds": 0.25, "count": 2}}, "tile_seconds": [1.5]},
        "kv_cache": {"hits": 3, "misses": 1, "dropped": 0},
    }


@pytest.mark.parametrize("option", ["--frame", "--photo", "--photo-frame"])
def test_restore_refuses_to_overwrite_an_input(bundle: Bundle, tmp_path: Path, option: str) -> None:
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"a photo")
    (tmp_path / "link.png").symlink_to(kept)
    images = {"--frame": "f.png", "--photo": "p.png", option: kept}
    pairs = [part for pair in images.items() for part in pair]
    result = run("restore", bundle.path, *pairs, "-o", tmp_path / "link.png")
    assert result.exit_code == 2
    assert f"is also {option}" in result.stderr
    assert kept.read_bytes() == b"a photo"


def validation(status: Status | None) -> ValidationReport:
    """A report of one check, or of none."""
    check = Check(name="self.finite", value=0.0, limit=0.0, unit="count", better="lower", status=status or "info")
    info = BundleInfo("b", "0", "fp32", None, "onnx", "per-step", "onnxruntime:cpu", 1, {})
    return ValidationReport(bundle=info, checks=(check,) if status else ())


def test_validate_passes_everything_on(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> None:
    backend = stand_in(monkeypatch, "livemoments.validate.run:validate_bundle", validation("pass"))
    clip = ("--prompt", "q", "--frame", "f", "--photo", "p", "--photo-frame", "v")
    data = ("--dataset", "d", "--set", "synlive260", "--limit", 9, "--allow-failed", 2, "--fresh", "--no-pictures")
    work = (
        "--engine",
        "ray",
        "--workers",
        3,
        "--ray-address",
        "a:1",
        "--metrics",
        "ssim_y,psnr_y",
        "--luma",
        "bt601-full",
    )
    how = (
        "--seed",
        4,
        "--steps",
        3,
        "--reference",
        "frozen",
        "--flow",
        "dis",
        "--tile",
        64,
        "--batch",
        2,
        "--pad-small",
        "--no-pcr",
    )
    which = (
        "--levels",
        "photo,step",
        "--bisect",
        "--no-self-checks",
        "--compare-interpreter",
        "--runs",
        7,
        "--limits",
        "l.toml",
    )
    rest = ("--provider", "cuda", "--threads", 2, "--baseline", "old.json", "-o", tmp_path / "report")
    result = run("validate", bundle.path, "--checkpoint", "c", *clip, *data, *work, *how, *which, *rest)
    assert result.exit_code == 0, result.output
    assert backend.positional[0].manifest == bundle.manifest
    assert backend.positional[1:] == (Path("c"),)
    del backend.options["progress"]
    metrics = StandardMetrics(("psnr_y", "ssim_y"), None, "bt601-full")
    assert backend.options == {
        "recording": None,
        "live_photo": LivePhoto(Path("f"), Path("p"), Path("v")),
        "data": DataOptions(
            Path("d"),
            "synlive260",
            9,
            allowed_failures=2,
            run=RunOptions(metrics, "ray", 3, "a:1", pictures=False, fresh=True),
        ),
        "output": tmp_path / "report",
        "options": ValidateOptions(
            restore=RestoreOptions(
                4, 3, "frozen", "dis", tile="64x64", batch=2, pad_small=True, no_pcr=True, provider="cuda", threads=2
            ),
            levels=("step", "photo"),
            find_fault=True,
            check_itself=False,
            compare_interpreter=True,
            prompt=Path("q"),
            cost_runs=7,
            baseline=Path("old.json"),
            limits=Path("l.toml"),
            command=" ".join(["livemoments", *sys.argv[1:]]),
        ),
    }
    run("validate", bundle.path, "--no-cost")
    options = backend.options["options"]
    assert (options.cost_runs, backend.options["data"], options.restore.seed) == (0, None, 0)


@pytest.mark.parametrize(("status", "code", "gated"), [("pass", 0, 0), ("fail", 1, 1), (None, 0, 1)])
def test_validate_ends_as_the_report_says(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path, status: Status | None, code: int, gated: int
) -> None:
    stand_in(monkeypatch, "livemoments.validate.run:validate_bundle", validation(status))
    report = tmp_path / "report.json"
    result = run("validate", bundle.path, "--checkpoint", "c", "-o", report)
    assert result.exit_code == code
    assert ("all limits kept" in result.stdout) == (status == "pass")
    assert json.loads(report.read_text())["bundle"]["name"] == "b"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    result = run("validate", bundle.path, "--gate", "--json")
    assert result.exit_code == gated
    assert json.loads(result.stdout)["schema"] == "livemoments/validation/1"
    assert result.stderr.count("gate: ") == gated


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frame", "f"], "--frame and --photo go together"),
        (["--photo-frame", "v"], "--photo-frame needs"),
        (["--checkpoint", "c", "--recording", "r"], "two references"),
        (["--limit", "3"], "need --dataset"),
        (["--bisect"], "needs a reference"),
        (["--levels", "pixel"], "'pixel' is not one of block, network, step, tile, photo"),
    ],
)
def test_validate_refuses_what_does_not_go_together(arguments: list[str], words: str) -> None:
    result = run("validate", "b", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(("name", "words"), [("file", "is a file"), ("none/report.json", "no such folder")])
def test_validate_refuses_an_impossible_report_before_the_work(
    bundle: Bundle, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "file").write_text("kept")
    result = run("validate", bundle.path, "-o", tmp_path / name)
    assert result.exit_code == 2
    assert words in result.stderr
    assert (tmp_path / "file").read_text() == "kept"


def test_demo_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = stand_in(monkeypatch, "livemoments.demo:run_demo", Report(True))
    assert run("demo").exit_code == 0
    assert (backend.positional, backend.options["photo"], backend.options["frame"]) == (
        (Path("demo-output"),),
        None,
        None,
    )
    assert backend.options["full"] is False
    result = run("demo", "-o", "out", "--photo", "p", "--frame", "f", "--full", "--json")
    assert backend.options["full"] is True
    assert json.loads(result.stdout)["passed"] is True
    assert (backend.positional, backend.options["photo"]) == ((Path("out"),), Path("p"))
    stand_in(monkeypatch, "livemoments.demo:run_demo", Report(False))
    assert run("demo").exit_code == 1


def test_export_builds_engines_of_the_bundle_that_it_wrote(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    backend = stand_in(monkeypatch, "livemoments.export.pipeline:export_bundle", bundle)
    builder = stand_in(monkeypatch, "livemoments.export.tensorrt.build:build_engines", (bundle, []))
    checked: list[tuple[str, tuple[str, ...], str]] = []
    monkeypatch.setattr("livemoments.cli.export.check_engine", lambda *given: checked.append(given))
    options = ["--target", "tensorrt", "--engine", "rtx", "--sm", "8.9, 12.0"]
    result = run("export", "weights", "-o", "out", *options)
    assert result.exit_code == 0, result.output
    assert checked == [("rtx", ("8.9", "12.0"), "onnx")]
    assert backend.options["target"] == "tensorrt"
    assert not {"engine", "sm", "via"} & set(backend.options)
    folder, wanted = builder.positional
    assert folder == bundle.path
    assert (wanted.library, wanted.sm, wanted.stages) == ("rtx", ("8.9", "12.0"), None)
    assert (wanted.via, wanted.checkpoint) == ("onnx", None)
    assert run("export", "weights", "-o", "out", *options, "--via", "torch-tensorrt").exit_code == 0
    assert checked[-1][-1] == "torch-tensorrt"
    wanted = builder.positional[1]
    assert (wanted.via, wanted.checkpoint) == ("torch-tensorrt", Path("weights"))


def test_build_passes_everything_on(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    builder = stand_in(monkeypatch, "livemoments.export.tensorrt.build:build_engines", (bundle, []))
    assert run("build", "b", "--engine", "rtx").exit_code == 0
    wanted = builder.positional[1]
    assert (wanted.sm, wanted.batch, wanted.stages, wanted.tiles, wanted.flow_sizes) == ((), 1, None, None, ())
    assert (wanted.flags, wanted.optimization_level, wanted.timing_cache) == ((), None, None)
    assert (wanted.rebuild, wanted.check_memory) == (False, True)
    assert (wanted.via, wanted.checkpoint) == ("onnx", None)
    sizes = "--stages flow,motion --tile 64 --tile 64x64 --flow-size 640x480 --batch 2 --optimization-level 5"
    flags = "--weight-streaming --refit --strip-weights --version-compatible --hardware-compatible"
    more = "--timing-cache t --rebuild --no-memory-check --via torch-tensorrt --checkpoint c --json"
    result = run("build", "b", "--engine", "tensorrt", *sizes.split(), *flags.split(), *more.split())
    assert json.loads(result.stdout) == {"bundle": str(bundle.path), "engines": []}
    wanted = builder.positional[1]
    assert (wanted.library, wanted.batch, wanted.stages) == ("tensorrt", 2, (Stage.FLOW, Stage.MOTION))
    assert (wanted.tiles, wanted.flow_sizes) == ((Size(64, 64),), (Size(480, 640),))
    assert [f"--{flag}" for flag in wanted.flags] == flags.split()
    assert (wanted.optimization_level, wanted.timing_cache) == (5, Path("t"))
    assert (wanted.rebuild, wanted.check_memory) == (True, False)
    assert (wanted.via, wanted.checkpoint) == ("torch-tensorrt", Path("c"))
