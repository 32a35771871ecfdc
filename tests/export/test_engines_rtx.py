"""Engines of the real TensorRT for RTX, which parses and builds on any machine; running them needs a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from calibration_photos import write_photos
from cli_support import error_of, run
from engine_support import check_engines, check_numerics, needs_rtx
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle, rewrite_manifest
from livemoments.errors import EngineError, MissingExtraError, ResourceError
from livemoments.export.tensorrt import process
from livemoments.export.tensorrt.build import build_engines
from livemoments.export.tensorrt.check import check_target
from livemoments.export.tensorrt.options import DEFAULT_SM, BuildOptions
from livemoments.export.tensorrt.protocol import Done, Failed, Job
from livemoments.manifest import EngineLibrary
from livemoments.tensorrt.library import load_library
from livemoments.types import Size, Stage

TRANSFORMERS = (Stage.REFERENCE, Stage.RESTORATION)
TILE = Size(128, 128)
JOB = Job(library="rtx", graph="nowhere.onnx", size="64x64", batch=1, output="nowhere")


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Half precision, which the engines are for, with the graphs of ``--target tensorrt``; every stage is compared with
    the reference."""
    from livemoments.export.pipeline import export_bundle

    place = tmp_path_factory.mktemp("half") / "bundle"
    export_bundle(
        tiny_checkpoint, place, target="tensorrt", precision="fp16", tiles=(TILE,), overlap=16, steps=(3, 6),
        verify="sampled",
    )  # fmt: skip
    return place


@needs_rtx
def test_one_stage_builds_for_all_consumer_gpus(tmp_path: Path, tiny_bundle: Path) -> None:
    """The quick one: onnxruntime's form of attention, rewritten on the way."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    check_engines(tmp_path / "bundle", (Stage.REFERENCE,), DEFAULT_SM)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize("sm", DEFAULT_SM)
def test_every_stage_builds_in_half_precision(half_bundle: Path, tmp_path: Path, sm: str) -> None:
    shutil.copytree(half_bundle, tmp_path / "bundle")
    check_engines(tmp_path / "bundle", tuple(stage for stage in Stage if stage is not Stage.FLOW), (sm,))


@needs_rtx
@pytest.mark.slow
def test_raft_builds_once_for_all_consumer_gpus(half_bundle: Path, tmp_path: Path) -> None:
    """Unrolled, it has 7,441 layers, which take as long as all other stages together."""
    shutil.copytree(half_bundle, tmp_path / "bundle")
    check_engines(tmp_path / "bundle", (Stage.FLOW,), DEFAULT_SM)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "sm"),
    [
        ("int8-tensorrt", DEFAULT_SM),
        ("int8-tensorrt-mixed", DEFAULT_SM),
        ("int8-rotated", DEFAULT_SM),
        ("fp8", ("8.9", "12.0")),
        ("fp8-mixed", ("8.9", "12.0")),
    ],
)
def test_quantized_transformers_build(half_bundle: Path, tmp_path: Path, recipe: str, sm: tuple[str, ...]) -> None:
    from livemoments.quantize.pipeline import quantize_bundle

    photos = write_photos(tmp_path / "photos", ("a",))
    quantize_bundle(half_bundle, tmp_path / "bundle", recipe=recipe, calibration=photos)
    between = Bundle.open(tmp_path / "bundle").graph(Stage.REFERENCE, TILE).outputs
    assert {spec.dtype for spec in between} == {"int8"}
    assert check_target(Bundle.open(tmp_path / "bundle"), "rtx", sm=sm, stages=TRANSFORMERS).passed
    check_engines(tmp_path / "bundle", TRANSFORMERS, sm)
    for stage in TRANSFORMERS:
        check_numerics(Bundle.open(half_bundle), Bundle.open(tmp_path / "bundle"), stage)
    if recipe == "fp8":
        with pytest.raises(EngineError, match=r"FLOAT8E4M3FN, which SM 8\.6 does not have"):
            build_engines(tmp_path / "bundle", BuildOptions("rtx", sm=("8.6",), stages=TRANSFORMERS, rebuild=True))
        Bundle.open(tmp_path / "bundle")  # what was there still is


@needs_rtx
@pytest.mark.slow
def test_a_scale_for_each_timestep_builds(half_bundle: Path, tmp_path: Path) -> None:
    """Where only the scale is looked up; no shipped recipe asks for it."""
    from livemoments.quantize.pipeline import quantize_bundle
    from livemoments.quantize.recipes import load_recipe

    photos = write_photos(tmp_path / "photos", ("a",))
    recipe = msgspec.structs.replace(load_recipe("int8-tensorrt"), name="stepped", step_ranges=True)
    quantize_bundle(half_bundle, tmp_path / "bundle", recipe=recipe, calibration=photos, verify=False)
    check_engines(tmp_path / "bundle", (Stage.RESTORATION,), DEFAULT_SM)


def test_recipes_of_onnxruntime_are_refused_for_a_bundle_that_was_exported_for_tensorrt(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle").path
    opened = Bundle.open(bundle)
    rewrite_manifest(bundle, msgspec.structs.replace(opened.manifest, target="tensorrt", recipe=None))
    for recipe, why in (
        ("int8", "zero points change with the timestep"),
        ("int4-weights", "onnxruntime's own operators"),
    ):
        result = run("quantize", bundle, "-o", tmp_path / "out", "--recipe", recipe, "--json")
        assert result.exit_code == 2
        assert why in error_of(result)["message"]
        assert "int8-tensorrt, int8-rotated or fp8" in error_of(result)["fix"]
        assert not (tmp_path / "out").exists()


@needs_rtx
@pytest.mark.slow
def test_a_range_for_each_timestep_is_refused_by_module(tiny_bundle: Path, tmp_path: Path) -> None:
    from livemoments.quantize.pipeline import quantize_bundle

    photos = write_photos(tmp_path / "photos", ("a",))
    quantize_bundle(tiny_bundle, tmp_path / "bundle", recipe="int8", calibration=photos, verify=False)
    found = check_target(Bundle.open(tmp_path / "bundle"), "rtx", stages=(Stage.MOTION, Stage.RESTORATION))
    assert [bool(graph.refusals) for graph in found.graphs] == [False, True]
    modules = {refusal.module for refusal in found.graphs[1].refusals}
    assert {"transformer_blocks.0.attn.to_k", "transformer_blocks.3.ff.net.0.proj"} <= modules
    assert {refusal.reason.partition(",")[0] for refusal in found.graphs[1].refusals} == {"its zero point is computed"}


@needs_rtx
@pytest.mark.process
def test_the_command_goes_on_where_a_killed_one_was(tmp_path: Path) -> None:
    """Killed outright with one engine done and one begun: what is done stays, the rest is built, and nothing else."""
    bundle = make_fake_bundle(tmp_path / "bundle").path
    manifest = bundle / "manifest.json"
    (tmp_path / "tensorrt_rtx.py").write_text(
        f"import pathlib, time\n"
        f"while '\"engines\"' in pathlib.Path({str(manifest)!r}).read_text(): time.sleep(0.05)\n"  # the second waits
        f"from tensorrt_rtx_bindings import *\n"
        f"from tensorrt_rtx_bindings import __version__\n"
    )
    arguments = ["build", str(bundle), "--engine", "rtx", "--sm", "8.9", "--stages", "motion,reference"]
    command = [sys.executable, "-P", "-m", "livemoments", *arguments, "-q"]
    killed = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, start_new_session=True)
    deadline_s = time.monotonic() + 120
    while not list((bundle / "reference").glob(".*.engine.partial-*")):
        assert time.monotonic() < deadline_s
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert [stage for stage in Stage if Bundle.open(bundle).stage(stage).graphs[0].engines] == [Stage.MOTION]
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert {one["stage"]: one["built"] for one in document["engines"]} == {"motion": False, "reference": True}
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert found == {*Bundle.open(bundle).manifest.files, "manifest.json"}
    assert run("build", bundle, "--engine", "rtx", "--sm", "8.6", "--stages", "motion").exit_code == 2
    shown = run("inspect", bundle).output
    assert "Engines" in shown
    assert "TensorRT for RTX" in shown


@needs_rtx
def test_check_asks_the_parser_and_says_so(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle").path
    result = run("check", bundle, "--target", "rtx", "--stages", "reference")
    assert result.exit_code == 0, result.output
    assert "its parser read the graphs" in result.stdout
    assert "layers" in result.stdout
    assert "every graph can be taken" in result.stdout


@needs_rtx
def test_check_says_that_the_parser_was_asked_where_it_took_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(job: Job, what: str) -> Done:
        raise process.RefusedError("it", Failed("parsing", ("no such thing",)))

    monkeypatch.setattr("livemoments.export.tensorrt.check.run_job", refuse)
    bundle = make_fake_bundle(tmp_path / "bundle").path
    result = run("check", bundle, "--target", "rtx", "--stages", "motion")
    assert result.exit_code == 1
    assert "its parser read the graphs" in result.stdout
    assert "no such thing" in result.stdout


def test_check_says_where_no_parser_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bundle = make_fake_bundle(tmp_path / "bundle").path
    result = run("check", bundle, "--target", "tensorrt", "--stages", "motion")
    assert result.exit_code == 0, result.output
    assert "no parser of the library read them here" in result.stdout


@pytest.mark.parametrize(("name", "module"), [("tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx")])
def test_a_library_that_is_not_installed_is_said_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: EngineLibrary, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=f"needs the extra '{name}'"):
        load_library(name)
    bundle = make_fake_bundle(tmp_path / "bundle").path
    result = run("build", bundle, "--engine", name, "--json")
    assert result.exit_code == 2
    assert error_of(result)["fix"] == f"pip install 'livemoments-deploy[{name}]'"
    result = run("export", tmp_path, "-o", tmp_path / "o", "--target", "tensorrt", "--engine", name, "--json")
    assert error_of(result)["fix"] == f"pip install 'livemoments-deploy[{name}]'"  # before the export begins


@pytest.mark.parametrize("content", ["raise ImportError('libnvinfer.so.10: cannot open')", "stub = True"])
def test_a_library_that_is_only_a_stub_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"cannot be imported|is a stub") as raised:
        load_library("tensorrt")
    assert "NVIDIA's index" in str(raised.value.fix)
    sys.modules.pop("tensorrt", None)


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "memory ran out"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", EngineError, "died of SIGSEGV while parsing"),
        ("import sys; sys.exit('no such thing')", EngineError, "ended with exit code 1 while parsing: no such thing"),
        (
            'print(\'{"type":"failed","while_":"building","messages":["std::bad_alloc"]}\')',
            ResourceError,
            "memory ran out",
        ),
        (
            'print(\'{"type":"failed","while_":"writing","messages":["No space left on device"]}\')',
            ResourceError,
            "cannot be written",
        ),
        (
            'print(\'{"type":"failed","while_":"building","messages":["no kernel"]}\')',
            EngineError,
            r"it: refused while building \(no kernel\)",
        ),
    ],
)
def test_whatever_becomes_of_the_process_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, program: str, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", program))
    with pytest.raises(error, match=words):
        process.run_job(JOB, "it")


@pytest.mark.process
def test_an_interrupt_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = (
        "import os, sys, time\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        'print(\'{"type":"advanced","fraction":0.5,"phase":"p"}\', flush=True)\n'
        "time.sleep(600)"
    )
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", program))

    def interrupt(fraction: float, phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run_job(JOB, "it", interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.process
def test_the_process_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    """In the middle of whatever the library does; here it never comes back from its import."""
    (tmp_path / "tensorrt_rtx.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        process._COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment
    ) as worker:
        assert worker.stdin is not None
        worker.stdin.write(msgspec.json.encode(JOB) + b"\n")
        worker.stdin.flush()
        deadline_s = time.monotonic() + 120
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline_s
            assert worker.poll() is None
            time.sleep(0.01)
        worker.stdin.close()
        assert worker.wait(timeout=120) == 1


STAND_IN = """
from tensorrt_rtx import *
from tensorrt_rtx import __version__
del ComputeCapability
"""
"""TensorRT, as far as TensorRT for RTX can stand for it: 669 of 671 signatures are the same."""
FAKE_NVML = """
class NVMLError(Exception):
    pass


def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetCudaComputeCapability(device): return 9, 0
def nvmlDeviceGetName(device): return "NVIDIA H20"
def nvmlSystemGetDriverVersion(): return b"580.65.06"
"""


@needs_rtx
def test_the_road_of_the_full_library_runs_with_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same process and calls as for TensorRT, carried out by the library that is here: timing cache, options, and
    the GPU and driver in the manifest. The engines are no TensorRT engines."""
    place = tmp_path / "libraries"
    place.mkdir()
    (place / "tensorrt.py").write_text(STAND_IN)
    (place / "pynvml.py").write_text(FAKE_NVML)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("tensorrt", "pynvml"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    bundle = make_fake_bundle(tmp_path / "bundle").path
    options = ["--stages", "motion", "--hardware-compatible", "--weight-streaming", "--optimization-level", "2"]
    cache = tmp_path / "timings"
    result = run("build", bundle, "--engine", "tensorrt", *options, "--timing-cache", cache)
    assert result.exit_code == 0, result.output
    (engine,) = Bundle.open(bundle).stage(Stage.MOTION).graphs[0].engines
    assert (engine.library, engine.sm, engine.gpu, engine.driver) == ("tensorrt", ("9.0",), "NVIDIA H20", "580.65.06")
    assert engine.flags == ("hardware-compatible", "weight-streaming", "optimization-level=2")
    assert cache.is_file()
    assert "1 engine built" in result.output
    kept = run("build", bundle, "--engine", "tensorrt", *options, "--timing-cache", cache)
    assert "0 engines built, 1 kept" in kept.output
    found = run("check", bundle, "--target", "tensorrt", "--stages", "motion")
    assert found.exit_code == 0, found.output
    assert "for SM 9.0: its parser read the graphs" in found.output
    for name in ("tensorrt", "pynvml"):
        sys.modules.pop(name, None)
