"""``export --target coreml``: its options, its resumption, its errors; and photos restored from its packages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the extra 'coreml' is not installed")

from apple_packages import check_golden, export_for_golden, pictures
from export_support import make_nano

from livemoments.bundle import Bundle
from livemoments.coreml.backend import CoreMlBackend
from livemoments.coreml.interpreter import Interpreter
from livemoments.coreml.package import Package
from livemoments.distances import psnr_db
from livemoments.errors import EngineError, MissingExtraError, OutputError, ParityError, ResourceError, UsageError
from livemoments.export.coreml import pipeline
from livemoments.export.coreml.convert import merge
from livemoments.export.coreml.modules import chunks
from livemoments.export.coreml.pipeline import COREML, Answer, Job, Kind
from livemoments.export.pipeline import export_bundle
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.restore import restore
from livemoments.store.claims import only_one
from livemoments.types import Size, Stage

TILE = Size(64, 64)


@pytest.fixture(name="nano", scope="module")
def fixture_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nano(tmp_path_factory.mktemp("nano") / "checkpoint")


class Worker:
    """Stands for the workers' processes: writes a package's files and counts; may fail at one of them."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.jobs: list[Job] = []
        self._fails_at, self._error = fails_at, error

    def __call__(self, job: Job, work: Path, kind: Kind) -> Answer:
        if len(self.jobs) == self._fails_at and self._error is not None:
            raise self._error
        self.jobs.append(job)
        for name in (
            "Manifest.json",
            "Data/com.apple.CoreML/model.mlmodel",
            "Data/com.apple.CoreML/weights/weight.bin",
        ):
            file = Path(job.package) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{job.stage} {job.size} {job.span} {name}")
        return Answer(parameters=7)

    @property
    def names(self) -> list[str]:
        return [Path(job.package).name for job in self.jobs]


def export(nano: Path, output: Path, **options: Any) -> Bundle:
    usual: dict[str, Any] = {
        "target": "coreml",
        "tiles": (TILE,),
        "overlap": 16,
        "steps": (3,),
        "verify": "none",
        "stages": [Stage.MOTION, Stage.REFERENCE, Stage.RESTORATION],
        "blocks_per_package": 1,
    }
    return export_bundle(nano, output, **(usual | options))


def test_blocks_are_spread_evenly_over_as_few_packages_as_they_allow() -> None:
    assert chunks(24, 6) == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert chunks(24, 5) == [(0, 5), (5, 10), (10, 14), (14, 19), (19, 24)]
    assert chunks(2, 6) == [(0, 2)]
    for blocks in range(1, 40):
        for most in range(1, 8):
            spans = chunks(blocks, most)
            assert [block for start, stop in spans for block in range(start, stop)] == list(range(blocks))
            assert max(stop - start for start, stop in spans) <= most


def test_the_bundle_lists_packages_in_the_order_in_which_they_run(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    monkeypatch.setattr(pipeline, "_run", worker)
    bundle = export(nano, tmp_path / "bundle")
    assert bundle.manifest.target == "coreml"
    graph = bundle.graph(Stage.REFERENCE, TILE)
    assert graph.path == "reference/64x64-00-01.mlpackage/Manifest.json"
    assert [name for name in (graph.path, *graph.weights) if name.endswith("/Manifest.json")] == [
        "reference/64x64-00-01.mlpackage/Manifest.json",
        "reference/64x64-01-02.mlpackage/Manifest.json",
    ]
    assert bundle.stage(Stage.REFERENCE).parameters == 14
    assert worker.names == [
        "motion-64x64.mlpackage",
        "reference-64x64-00-01.mlpackage",
        "reference-64x64-01-02.mlpackage",
        "restoration-64x64-00-01.mlpackage",
        "restoration-64x64-01-02.mlpackage",
    ]
    Bundle.open(tmp_path / "bundle")  # every hash is right
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with pytest.raises(EngineError, match="Core ML packages, which onnxruntime does not run"):
        OrtBackend().open(bundle, Stage.MOTION, TILE)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("the converter ended with 1: killed")])
def test_an_interrupted_export_goes_on_where_it_was(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    first, second = Worker(fails_at=3, error=error), Worker()
    monkeypatch.setattr(pipeline, "_run", first)
    with pytest.raises(type(error)):
        export(nano, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.coreml"]
    monkeypatch.setattr(pipeline, "_run", second)
    bundle = export(nano, tmp_path / "bundle")
    assert (len(first.jobs), len(second.jobs)) == (3, 2)
    assert bundle.stage(Stage.REFERENCE).parameters == 14  # of packages from both tries
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_export_with_other_options_begins_anew(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_run", Worker(fails_at=3, error=EngineError("stopped")))
    with pytest.raises(EngineError, match="stopped"):
        export(nano, tmp_path / "bundle")
    again = Worker()
    monkeypatch.setattr(pipeline, "_run", again)
    export(nano, tmp_path / "bundle", precision="fp16")
    assert len(again.jobs) == 5
    assert {job.precision for job in again.jobs} == {"fp16"}


def test_two_exports_to_one_place_are_not_mixed(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_run", Worker())
    work = tmp_path / ".bundle.coreml"
    work.mkdir()
    with only_one(work / "lock"), pytest.raises(OutputError, match="another export is writing there"):
        export(nano, tmp_path / "bundle")


def test_flow_gets_packages_for_tiles_and_video_frames(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    monkeypatch.setattr(pipeline, "_run", worker)
    bundle = export(nano, tmp_path / "bundle", stages=[Stage.FLOW], flow_sizes=[Size(64, 88), TILE], precision="fp16")
    assert worker.names == ["flow-64x64.mlpackage", "flow-88x64.mlpackage", "flow-all.mlpackage"]
    assert [(graph.size, graph.path) for graph in bundle.stage(Stage.FLOW).graphs] == [
        ("64x64", "flow/all.mlpackage/Manifest.json"),
        ("88x64", "flow/all.mlpackage/Manifest.json"),
    ]
    assert bundle.stage(Stage.FLOW).precision == "fp32"
    assert bundle.graph(Stage.FLOW, Size(64, 88)).inputs[0].shape == ("batch", 3, 64, 88)


def test_tiles_of_several_sizes_share_their_packages(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    monkeypatch.setattr(pipeline, "_run", worker)
    bundle = export(nano, tmp_path / "bundle", tiles=(TILE, Size(64, 96)), stages=[Stage.REFERENCE])
    merges = [job for job in worker.jobs if job.merged]
    assert [[(name, Path(package).name) for name, package in job.merged] for job in merges] == [
        [("size_64x64", f"reference-64x64-{span}.mlpackage"), ("size_96x64", f"reference-96x64-{span}.mlpackage")]
        for span in ("00-01", "01-02")
    ]
    graphs = bundle.stage(Stage.REFERENCE).graphs
    assert [graph.size for graph in graphs] == ["64x64", "96x64"]
    assert graphs[0].path == graphs[1].path == "reference/all-00-01.mlpackage/Manifest.json"
    assert graphs[0].weights == graphs[1].weights
    assert not list((tmp_path / "bundle" / "reference").glob("64x64*"))


def test_joined_packages_keep_one_copy_of_a_weight(tmp_path: Path) -> None:
    from coreml_programs import mb, save

    rng = np.random.default_rng()
    weight, inputs = rng.standard_normal((256, 256)).astype(np.float32), {}
    for rows in (4, 6):
        inputs[f"size_{rows}"] = {"x": rng.standard_normal((rows, 256)).astype(np.float32)}
        save(lambda x: mb.linear(x=x, weight=weight), inputs[f"size_{rows}"], tmp_path / f"size_{rows}.mlpackage")
    merge({name: str(tmp_path / f"{name}.mlpackage") for name in inputs}, tmp_path / "all.mlpackage")
    size = sum(file.stat().st_size for file in (tmp_path / "all.mlpackage").rglob("*") if file.is_file())
    assert size < 1.2 * weight.nbytes
    package = Package.open(tmp_path / "all.mlpackage")
    assert package.default == "size_4"
    for name, feeds in inputs.items():
        (got,) = Interpreter(package, name).run(feeds).values()
        np.testing.assert_allclose(got, feeds["x"] @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_layout": "stacked"}, "block by block"),
        ({"flow_sizes": [Size(60, 88)]}, "RAFT takes no images of 88x60"),
        ({"flow_sizes": [Size(56, 88)]}, "multiples of 8 px from 64 px"),
        ({"blocks_per_package": 0}, "0 blocks make no package"),
        ({"target": "onnx"}, "are the target coreml's"),
        ({"target": "coreai"}, "blocks per package are the target coreml"),
        ({"precision": "int8-weights"}, "for the target coreai alone"),
    ],
)
def test_options_that_cannot_be_used_are_named(nano: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        export(nano, tmp_path / "bundle", **options)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_coremltools_is_known_at_once(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="extra 'coreml'"):
        export(nano, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "kind", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "was killed"),
        ("raise SystemExit('the last line')", EngineError, "ended with 1: the last line"),
        (
            'import sys; open(sys.argv[2], \'w\').write(\'{"error": "ParityError", "message": "far off"}\')',
            ParityError,
            "far off",
        ),
        (
            'import sys; open(sys.argv[2], \'w\').write(\'{"error": "CheckpointError", "message": "x: has NaN"}\')',
            EngineError,
            "x: has NaN",
        ),
    ],
)
@pytest.mark.process
def test_what_ends_a_worker_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[Exception], words: str
) -> None:
    (tmp_path / "stand_in_worker.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = Job(
        checkpoint="x", precision="fp32", steps=(3,), stage=Stage.MOTION, size="64x64", span=None, package="x.mlpackage"
    )
    with pytest.raises(kind, match=words):
        pipeline._run(job, tmp_path, replace(COREML, worker="stand_in_worker"))


# Real packages, in processes of their own


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 60.0), ("fp16", 45.0)])
def test_a_photo_from_the_packages_is_that_of_the_onnx_bundle(
    nano: Path, tmp_path: Path, precision: str, least_db: float
) -> None:
    common: dict[str, Any] = {"tiles": (TILE,), "overlap": 16, "steps": (3,)}
    stages = [stage for stage in Stage if stage != Stage.FLOW]
    onnx = export_bundle(nano, tmp_path / "onnx", verify="none", stages=stages, **common)
    packages = export(nano, tmp_path / "coreml", precision=precision, verify="full", stages=stages)
    assert {name for name, entry in packages.manifest.stages.items() if entry.parity} == set(map(str, stages))
    photo, frame = pictures(np.random.default_rng(2))
    results = [
        restore(bundle, frame, photo, seed=1, flow="dis", batch=batch).image.astype(float)
        for bundle, batch in ((onnx, 1), (packages, 1), (packages, 2))
    ]
    assert psnr_db(results[1], results[0], peak=255) >= least_db
    np.testing.assert_array_equal(results[2], results[1])


@pytest.mark.slow
@pytest.mark.process
def test_the_golden_photo_from_packages_of_half_precision(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """All six stages, RAFT among them: every recorded intermediate within its limit, the photo at least 45 dB."""
    bundle = export_for_golden(tiny_checkpoint, tmp_path / "bundle", target="coreml", blocks_per_package=2)
    check_golden(bundle, CoreMlBackend("interpreter"))
