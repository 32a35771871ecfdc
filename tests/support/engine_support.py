"""What the tests of engines share: when the real library is there, and a stand-in for where it is not."""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from graph_runs import farthest, random_feeds, run_graph

import livemoments.export.tensorrt.build as build
import livemoments.export.tensorrt.process as process
from livemoments.bundle import Bundle, hash_file, rewrite_manifest
from livemoments.export.tensorrt.options import BuildOptions
from livemoments.export.tensorrt.prepare import prepare
from livemoments.export.tensorrt.protocol import Done, Job
from livemoments.graphs.float_keys_values import keys_values_scales
from livemoments.limits import load_limits
from livemoments.manifest import EngineLibrary
from livemoments.tensorrt.gpu import Gpu
from livemoments.tensorrt.library import Library
from livemoments.types import Stage

EXACT = {"disable_quant_qdq": "1"}
"""Option of a session that computes what Q/DQ nodes say: onnxruntime's own fusions round elsewhere, and break fp8."""
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed (make rtx)"
)
H20 = Gpu("NVIDIA H20", "9.0", "580.65.06")


class ComputeCapability(enum.IntEnum):
    NONE = 0
    SM86 = 86
    SM89 = 89
    SM120 = 120


class BuilderFlag(enum.IntEnum):
    REFIT = 4
    VERSION_COMPATIBLE = 12
    STRIP_PLAN = 18
    WEIGHT_STREAMING = 20


def library(name: EngineLibrary = "rtx", version: str = "1.7.1") -> Library:
    """What the planning side sees of a library."""
    module = SimpleNamespace(BuilderFlag=BuilderFlag, HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS=1))
    if name == "rtx":
        module.ComputeCapability = ComputeCapability
    return Library(name, module, version)


class StandIn:
    """Takes the place of a library and its building process; engines are what :attr:`make` gives.

    Attributes:
        jobs: what was to be built.
        fail_at: the number of the job that raises :attr:`error` instead.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, gpu: Gpu | None = None) -> None:
        self.jobs: list[Job] = []
        self.version = "1.7.1"
        self.gpu = gpu
        self.fail_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        monkeypatch.setattr(build, "load_library", lambda name: library(name, self.version))
        monkeypatch.setattr(build, "find_gpu", lambda: self.gpu)
        monkeypatch.setattr(process, "run_job", self._run)

    def _run(self, job: Job, what: str, report: Callable[[float, str], None]) -> Done:
        self.jobs.append(job)
        report(0.5, "half of it")
        assert job.output is not None
        Path(job.output).write_bytes(f"{len(self.jobs)} {job.graph}".encode())
        if self.fail_at == len(self.jobs):
            raise self.error
        return Done(layers=3, bytes=1, seconds=0.1, peak_rss_bytes=1)


def change_file(bundle: Path, name: str, data: bytes) -> None:
    """Change a file of a bundle and what the manifest says of it."""
    opened = Bundle.open(bundle)
    (bundle / name).write_bytes(data)
    files = {**opened.manifest.files, name: hash_file(bundle / name)}
    rewrite_manifest(bundle, msgspec.structs.replace(opened.manifest, files=files))


def check_engines(bundle: Path, stages: tuple[Stage, ...], sm: tuple[str, ...]) -> None:
    """The library builds every one of these stages, and the manifest tells what came of it."""
    opened, built = build.build_engines(bundle, BuildOptions("rtx", sm=sm, stages=stages))
    assert [one.stage for one in built] == list(stages)
    for one in built:
        file = bundle / one.engine.path
        weights = sum(opened.manifest.files[name].bytes for name in opened.stage(one.stage).graphs[0].weights)
        assert one.bytes == file.stat().st_size > weights / 2  # the weights are in it
        assert one.engine.layers > 30
        assert one.peak_rss_bytes > 50e6
        assert one.engine.sm == sm
    Bundle.open(bundle)


def check_numerics(source: Bundle, quantized: Bundle, stage: Stage) -> None:
    """What an engine is built from, run on the CPU, against the source's graph and against the form that onnxruntime
    takes of the same recipe: as near as the precision allows, and not nearer than rounding to 8 bits can be."""
    size = quantized.tile_sizes[0]
    graph = quantized.graph(stage, size)
    scales = keys_values_scales(quantized, stage, size)
    exact = random_feeds(source.graph(stage, size).inputs, 1)
    feeds = {
        name: np.clip(np.rint(array / scales[name]), -128, 127).astype(np.int8) if name in scales else array
        for name, array in exact.items()
    }
    weights = (quantized.path / graph.path).parent

    def run(model: Path | bytes) -> list[np.ndarray]:
        outputs = run_graph(model, feeds, weights, **EXACT)
        return [
            array * scales.get(spec.name, np.float32(1)) for spec, array in zip(graph.outputs, outputs, strict=True)
        ]

    prepared = run(prepare(quantized.path / graph.path, size, 1).serialize())
    limit = load_limits(quantized.stage(stage).precision).stage_rel_l2[str(stage)]
    own = source.path / source.graph(stage, size).path
    assert 1e-3 < farthest(prepared, run_graph(own, exact, own.parent)) < limit
    # attention's sums in another order move values over rounding edges
    assert farthest(prepared, run(quantized.path / graph.path)) < limit
