"""What the tests of engines share: when the real library is there, and a stand-in for where it is not."""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

import livemoments.export.tensorrt.build as build
import livemoments.export.tensorrt.process as process
from livemoments.bundle import Bundle, hash_file, rewrite_manifest
from livemoments.export.tensorrt.protocol import Done, Job
from livemoments.manifest import EngineLibrary
from livemoments.tensorrt.gpu import Gpu
from livemoments.tensorrt.library import Library

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
