"""``export --target coreai``: its options, its resumption, its errors; and photos restored by Apple's runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coreai_torch", reason="the extra 'coreai' is not installed ('make coreai')")

from apple_packages import check_golden, export_for_golden, pictures
from export_support import make_nano

from livemoments.bundle import Bundle
from livemoments.coreai.backend import CoreAiBackend
from livemoments.distances import psnr_db
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.export.coreml import pipeline
from livemoments.export.coreml.pipeline import Answer, Job, Kind
from livemoments.export.pipeline import export_bundle
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.restore import restore
from livemoments.types import Size, Stage

TILE = Size(64, 64)


@pytest.fixture(name="nano", scope="module")
def fixture_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nano(tmp_path_factory.mktemp("nano") / "checkpoint")


class Worker:
    """Stands for the workers' processes: writes a package's files; may fail at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.jobs: list[Job] = []
        self._fails_at = fails_at

    def __call__(self, job: Job, work: Path, kind: Kind) -> Answer:
        assert kind.title == "Core AI"
        if len(self.jobs) == self._fails_at:
            raise EngineError("the converter ended with 1: killed")
        self.jobs.append(job)
        for name in ("main.mlirb", "main.hash", "metadata.json"):
            file = Path(job.package) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{job.stage} {job.size} {name}")
        return Answer(parameters=7)


def export(nano: Path, output: Path, **options: Any) -> Bundle:
    usual: dict[str, Any] = {
        "target": "coreai",
        "tiles": (TILE,),
        "overlap": 16,
        "steps": (3,),
        "verify": "none",
        "stages": [Stage.MOTION, Stage.REFERENCE],
    }
    return export_bundle(nano, output, **(usual | options))


def test_an_interrupted_export_goes_on_and_the_bundle_lists_its_packages(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Worker(fails_at=1), Worker()
    monkeypatch.setattr(pipeline, "_run", first)
    with pytest.raises(EngineError, match="killed"):
        export(nano, tmp_path / "bundle", precision="int8-weights")
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.coreai"]
    monkeypatch.setattr(pipeline, "_run", second)
    bundle = export(nano, tmp_path / "bundle", precision="int8-weights")
    assert [Path(job.package).name for job in (*first.jobs, *second.jobs)] == [
        "motion-64x64.aimodel",
        "reference-64x64-00-02.aimodel",
    ]
    assert [(job.precision, job.span) for job in (*first.jobs, *second.jobs)] == [
        ("fp16", None),
        ("int8-weights", (0, 2)),
    ]
    assert (bundle.manifest.target, bundle.manifest.precision) == ("coreai", "int8-weights")
    assert {name: entry.precision for name, entry in bundle.manifest.stages.items()} == {
        "motion": "fp16",
        "reference": "int8-weights",
    }
    graph = bundle.graph(Stage.REFERENCE, TILE)
    assert graph.path == "reference/64x64-00-02.aimodel/metadata.json"
    assert {spec.dtype for spec in (*graph.inputs, *graph.outputs)} == {"float16", "int64"}
    assert bundle.manifest.toolchain["coreai-torch"]
    Bundle.open(tmp_path / "bundle")  # every hash is right
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with pytest.raises(EngineError, match="Core AI packages, which onnxruntime does not run"):
        OrtBackend().open(bundle, Stage.MOTION, TILE)


def test_every_size_has_packages_of_its_own(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    monkeypatch.setattr(pipeline, "_run", worker)
    bundle = export(nano, tmp_path / "bundle", tiles=(TILE, Size(64, 96)), stages=[Stage.FLOW, Stage.MOTION])
    assert not any(job.merged for job in worker.jobs)
    assert [graph.path for graph in bundle.stage(Stage.MOTION).graphs] == [
        "motion/64x64.aimodel/metadata.json",
        "motion/96x64.aimodel/metadata.json",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kv_layout": "stacked"}, "Core AI packages pass keys and values block by block"),
        ({"blocks_per_package": 1}, "blocks per package are the target coreml's"),
        ({"precision": "int3-weights"}, "no precision 'int3-weights'"),
        ({"target": "onnx", "precision": "int8-weights"}, "is exported for the target coreai alone"),
    ],
)
def test_options_that_cannot_be_used_are_named(nano: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        export(nano, tmp_path / "bundle", **options)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tool_is_known_at_once(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None if name == "coreai_opt" else name)
    with pytest.raises(MissingExtraError, match=r"extra 'coreai'.*coreai_opt"):
        export(nano, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


# Real packages, in processes of their own


@pytest.mark.slow
@pytest.mark.process
def test_a_stage_is_written_and_checked_by_apples_runtime(nano: Path, tmp_path: Path) -> None:
    bundle = export(nano, tmp_path / "bundle", stages=[Stage.MOTION], verify="full", precision="fp16")
    (parity,) = bundle.stage(Stage.MOTION).parity
    assert 1e-5 < parity.rel_l2 <= parity.limit == 1e-2


@pytest.mark.slow
@pytest.mark.process
def test_a_photo_from_the_packages_is_that_of_the_onnx_bundle(nano: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"tiles": (TILE,), "overlap": 16, "steps": (3,)}
    stages = [stage for stage in Stage if stage != Stage.FLOW]
    onnx = export_bundle(nano, tmp_path / "onnx", verify="none", stages=stages, **common)
    packages = export(nano, tmp_path / "coreai", verify="full", stages=stages)
    assert max(entry.parity[0].rel_l2 for entry in packages.manifest.stages.values()) <= 5e-6
    photo, frame = pictures(np.random.default_rng(2))
    results = [restore(bundle, frame, photo, seed=1, flow="dis").image.astype(float) for bundle in (onnx, packages)]
    assert psnr_db(results[1], results[0], peak=255) >= 60.0


@pytest.mark.slow
@pytest.mark.process
def test_the_golden_photo_from_packages(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """All six stages, RAFT among them: every recorded intermediate within its limit, the photo at least 60 dB.

    In float32: in float16 the interpreter takes many times as long (docs/coreai.md has what was measured once).
    """
    bundle = export_for_golden(tiny_checkpoint, tmp_path / "bundle", target="coreai", precision="fp32")
    check_golden(bundle, CoreAiBackend(), least_db=60.0)
