"""Engines by torch-tensorrt beside those from graphs, planned and refused; package and library are stand-ins here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_support import error_of, run
from engine_support import H20, StandIn, library
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle, hash_file, rewrite_manifest
from livemoments.engine_files import EngineHost, find_engine
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.export.tensorrt.build import build_engines
from livemoments.export.tensorrt.memory import needed_bytes
from livemoments.export.tensorrt.options import BuildOptions, check_options
from livemoments.export.tensorrt.protocol import Job
from livemoments.export.tensorrt.torch_road import check_road
from livemoments.manifest import Source
from livemoments.reference.layout import locate
from livemoments.types import Size, Stage

HOST = EngineHost("rtx", "1.7.1", ("8.9",))
TILE = Size(64, 64)


@pytest.fixture
def bundle(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A bundle that says it was exported from the tiny checkpoint."""
    opened = make_fake_bundle(tmp_path / "bundle")
    files = {name: hash_file(path) for name, path in locate(tiny_checkpoint).walk()}
    manifest = msgspec.structs.replace(opened.manifest, source=Source(name="tiny", files=files))
    rewrite_manifest(opened.path, manifest)
    return opened.path


def pretend(place: Path, distribution: str, content: str) -> None:
    """A package ``torch_tensorrt`` that a distribution brought."""
    (place / "torch_tensorrt").mkdir(parents=True)
    (place / "torch_tensorrt" / "__init__.py").write_text(content)
    info = place / f"{distribution.replace('-', '_')}-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.13.0\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-tensorrt-rtx, found and never imported here: the building process is a stand-in."""
    pretend(tmp_path / "packages", "torch-tensorrt-rtx", "raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)


class Road(StandIn):
    """Answers the question whether the road is open, too."""

    def _run(self, job: Job, what: str, report: Any = None) -> Any:
        if job.graph is None:
            self.jobs.append(job)
            return None
        return super()._run(job, what, report)


def by_torch(checkpoint: Path, **more: Any) -> BuildOptions:
    return BuildOptions("rtx", sm=("8.9",), via="torch-tensorrt", checkpoint=checkpoint, stages=(Stage.MOTION,), **more)


@pytest.mark.usefixtures("installed")
def test_both_roads_lie_side_by_side(bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Road(monkeypatch)
    build_engines(bundle, BuildOptions("rtx", sm=("8.9",), stages=(Stage.MOTION,)))
    (from_graph,) = Bundle.open(bundle).stage(Stage.MOTION).graphs[0].engines
    build_engines(bundle, by_torch(tiny_checkpoint))
    found = Bundle.open(bundle)
    assert [job.graph is None for job in maker.jobs] == [False, True, False]  # asked once, before it began
    source = maker.jobs[-1].torch
    assert source is not None
    assert source.schedule == found.manifest.schedule
    assert (source.stage, source.precision, source.kv_layout) == (
        Stage.MOTION,
        found.manifest.precision,
        found.manifest.kv_layout,
    )
    assert Path(source.checkpoint) == tiny_checkpoint
    first, second = found.stage(Stage.MOTION).graphs[0].engines
    assert first == from_graph
    assert (first.via, second.via, second.layers) == ("onnx", "torch-tensorrt", 3)
    assert first.path != second.path
    assert find_engine(found, Stage.MOTION, TILE, 1, HOST) == bundle / first.path
    assert find_engine(found, Stage.MOTION, TILE, 1, HOST, via="torch-tensorrt") == bundle / second.path
    assert not build_engines(bundle, by_torch(tiny_checkpoint))[1][0].is_new
    assert len(maker.jobs) == 3  # what is kept asks nothing


@pytest.mark.usefixtures("installed")
def test_the_command_that_builds_again_names_road_and_checkpoint(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Road(monkeypatch)
    build_engines(bundle, by_torch(tiny_checkpoint))
    maker.version = "1.8.0"
    with pytest.raises(EngineError, match=r"1\.8\.0 is installed") as raised:
        build_engines(bundle, by_torch(tiny_checkpoint))
    asked = f"--stages motion --via torch-tensorrt --checkpoint {tiny_checkpoint} --rebuild"
    assert raised.value.fix == f"build it again: livemoments build {bundle} --engine rtx --sm 8.9 {asked}"
    opened = Bundle.open(bundle)
    with pytest.raises(EngineError, match=r"not for SM 12\.0") as raised:
        find_engine(opened, Stage.MOTION, TILE, 1, EngineHost("rtx", "1.7.1", ("12.0",)))
    assert str(raised.value.fix).endswith("--stages motion --via torch-tensorrt --checkpoint CHECKPOINT --rebuild")
    (engine,) = opened.stage(Stage.MOTION).graphs[0].engines
    (bundle / engine.path).unlink()
    with pytest.raises(Exception, match="--via torch-tensorrt --checkpoint CHECKPOINT --rebuild"):
        Bundle.open(bundle)


@pytest.mark.usefixtures("installed")
def test_another_checkpoint_and_a_quantized_bundle_are_refused(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Road(monkeypatch)
    manifest = Bundle.open(bundle).manifest
    name = next(iter(manifest.source.files))
    changed = msgspec.structs.replace(manifest.source.files[name], sha256="0" * 64)
    other = Source(name="tiny", files=manifest.source.files | {name: changed})
    rewrite_manifest(bundle, msgspec.structs.replace(manifest, source=other))
    with pytest.raises(UsageError, match=rf"is not the checkpoint that .* was exported from: {name} differs"):
        build_engines(bundle, by_torch(tiny_checkpoint))
    rewrite_manifest(bundle, msgspec.structs.replace(manifest, recipe="int8-tensorrt"))
    with pytest.raises(UsageError, match="quantized by the recipe 'int8-tensorrt'"):
        build_engines(bundle, by_torch(tiny_checkpoint))
    assert all(job.graph is None for job in maker.jobs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions("rtx", via="torch-tensorrt"), "builds from the checkpoint"),
        (BuildOptions("rtx", checkpoint=Path("c")), "a checkpoint is what torch-tensorrt builds from"),
        (by_torch(Path("c"), flags=("refit",)), "--refit: torch-tensorrt names weights otherwise"),
        (by_torch(Path("c"), flags=("strip-weights",)), "--strip-weights: torch-tensorrt names weights otherwise"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: BuildOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_options(library(options.library), options, H20)


def test_it_takes_more_memory_than_the_other_road() -> None:
    for weights in (0, 2_700_000_000):
        assert needed_bytes(weights, "torch-tensorrt") > needed_bytes(weights)


def test_where_it_is_not_installed_the_extra_is_named(
    bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(MissingExtraError, match="needs the extra 'torch-tensorrt', which is not installed"):
        check_road("tensorrt")
    StandIn(monkeypatch)
    with pytest.raises(MissingExtraError) as raised:
        build_engines(bundle, by_torch(tiny_checkpoint))
    assert raised.value.fix == "pip install 'livemoments-deploy[torch-tensorrt-rtx]'"


def test_the_one_for_the_other_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, "torch-tensorrt", "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    with pytest.raises(EngineError, match="the package torch-tensorrt-rtx does") as raised:
        check_road("rtx")
    assert "in an environment of its own" in str(raised.value.fix)


@pytest.mark.process
def test_an_import_that_fails_is_one_error_that_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says on a machine without a GPU, from the real building process."""
    pretend(tmp_path, "torch-tensorrt-rtx", "raise AssertionError('Torch not compiled with\\n CUDA enabled')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    with pytest.raises(EngineError) as raised:
        check_road("rtx")
    words = "torch-tensorrt cannot be imported (AssertionError: Torch not compiled with CUDA enabled)"
    assert raised.value.message == words
    assert str(raised.value.fix).startswith("it takes an NVIDIA GPU, its driver and a PyTorch built for CUDA")


def test_export_says_so_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    monkeypatch.setattr("livemoments.tensorrt.library.load_library", library)
    arguments = ["export", tmp_path, "-o", tmp_path / "o", "--via", "torch-tensorrt", "--json"]
    result = run(*arguments, "--target", "tensorrt", "--engine", "rtx")
    assert result.exit_code == 2
    assert error_of(result)["fix"] == "pip install 'livemoments-deploy[torch-tensorrt-rtx]'"
    assert "--via torch-tensorrt needs --engine" in error_of(run(*arguments, "--target", "tensorrt"))["message"]


@pytest.mark.usefixtures("installed")
def test_the_command_prints_both_roads_layers(
    bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Road(monkeypatch)
    arguments = ["build", bundle, "--engine", "rtx", "--sm", "8.9", "--stages", "motion"]
    assert run(*arguments).exit_code == 0
    result = run(*arguments, "--via", "torch-tensorrt", "--checkpoint", tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert "3 layers via torch-tensorrt, 3 via onnx" in result.stdout
    shown = run("inspect", bundle).stdout
    assert "torch-tensorrt" in shown
