"""Which engines are built, kept, refused and replaced; the library itself is a stand-in here."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_support import H20, StandIn, change_file, library
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle, rewrite_manifest
from livemoments.errors import BundleError, EngineError, ResourceError, UsageError
from livemoments.export.tensorrt import build as build_module
from livemoments.export.tensorrt.build import build_engines
from livemoments.export.tensorrt.memory import check_memory, needed_bytes
from livemoments.export.tensorrt.monitor import Phases
from livemoments.export.tensorrt.options import BuildOptions, check_options, host_of
from livemoments.manifest import EngineFile
from livemoments.progress import Task
from livemoments.quantize.write_stage import copy_stage
from livemoments.store.claims import only_one
from livemoments.types import Size, Stage

RTX = BuildOptions("rtx", sm=("8.6", "8.9"))
FULL = BuildOptions("tensorrt")
TWO = (Size(64, 64), Size(64, 96))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_fake_bundle(tmp_path / "bundle").path


def engines(bundle: Path) -> dict[str, tuple[EngineFile, ...]]:
    manifest = Bundle.open(bundle).manifest
    return {graph.path: graph.engines for entry in manifest.stages.values() for graph in entry.graphs}


def leftovers(bundle: Path) -> list[str]:
    """Files that the manifest does not list."""
    listed = {*Bundle.open(bundle, engines=False).manifest.files, "manifest.json"}
    return [
        n for p in sorted(bundle.rglob("*")) if p.is_file() and (n := p.relative_to(bundle).as_posix()) not in listed
    ]


def test_every_stage_gets_an_engine_beside_its_graph(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Bundle.open(bundle)
    maker = StandIn(monkeypatch)
    opened, built = build_engines(bundle, RTX)
    assert [one.stage for one in built] == list(Stage)
    assert all(one.is_new for one in built)
    found = Bundle.open(bundle)  # every hash is right
    assert found.manifest == opened.manifest
    assert leftovers(bundle) == []
    for stage in Stage:
        (engine,) = found.stage(stage).graphs[0].engines
        assert engine.path.startswith(f"{stage}/64x64-b1-rtx-")
        assert (engine.library, engine.version, engine.sm) == ("rtx", "1.7.1", ("8.6", "8.9"))
        assert (engine.size, engine.batch, engine.flags) == ("64x64", 1, ())
        assert (engine.gpu, engine.driver) == (None, None)
        assert engine.graph_sha256 == before.graph_digest(before.stage(stage).graphs[0])
    assert [job.sm for job in maker.jobs] == [("8.6", "8.9")] * 6
    assert all(job.timing_cache is None for job in maker.jobs)
    assert {name: before.manifest.files[name] for name in before.manifest.files}.items() <= found.manifest.files.items()


def test_engines_that_fit_are_kept_and_another_batch_or_size_is_added(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = StandIn(monkeypatch)
    build_engines(bundle, RTX)
    assert not any(one.is_new for one in build_engines(bundle, RTX)[1])
    fewer = BuildOptions("rtx", sm=("8.9",))
    assert not any(one.is_new for one in build_engines(bundle, fewer)[1])  # the engine serves it, too
    assert len(maker.jobs) == 6
    build_engines(bundle, BuildOptions("rtx", sm=("8.6", "8.9"), batch=4, stages=(Stage.MOTION,)))
    build_engines(bundle, BuildOptions("rtx", sm=("8.6",), stages=(Stage.FLOW,), flow_sizes=(Size(478, 633),)))
    assert [(job.batch, job.size) for job in maker.jobs[6:]] == [(4, "64x64"), (1, "640x480")]
    found = engines(bundle)
    assert [engine.batch for engine in found["motion/64x64.onnx"]] == [1, 4]
    assert [engine.size for engine in found["flow/any.onnx"]] == ["64x64", "640x480"]


def test_each_tile_size_has_its_engine_and_one_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_fake_bundle(tmp_path / "bundle", tiles=TWO).path
    maker = StandIn(monkeypatch)
    build_engines(folder, BuildOptions("rtx", tiles=TWO[1:], stages=(Stage.FLOW, Stage.MOTION)))
    assert [(Path(job.graph).name, job.size) for job in maker.jobs] == [("any.onnx", "96x64"), ("96x64.onnx", "96x64")]
    with pytest.raises(UsageError, match="has no tiles of 128x128; it has 64x64, 96x64"):
        build_engines(folder, BuildOptions("rtx", tiles=(Size(128, 128),)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineError("the library died")])
def test_a_build_that_stopped_goes_on_where_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    maker = StandIn(monkeypatch)
    maker.fail_at, maker.error = 3, error
    with pytest.raises(type(error)):
        build_engines(bundle, RTX)
    assert [len(found) for found in engines(bundle).values()].count(1) == 2  # and the manifest holds
    assert leftovers(bundle) == []
    _, built = build_engines(bundle, RTX)
    assert [one.is_new for one in built] == [False, False, True, True, True, True]


def test_what_a_killed_build_left_is_removed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the rename and the manifest, and while the library wrote."""
    (bundle / "motion" / "64x64-b1-rtx-00000000.engine").write_bytes(b"whole, but in no manifest")
    (bundle / "motion" / "somebody's.engine").write_bytes(b"not of ours")
    hidden = bundle / "motion" / ".64x64-b1-rtx-00000000.engine.partial-0123abcd"
    hidden.write_bytes(b"part")
    hidden.with_name(hidden.name + ".lock").touch()
    StandIn(monkeypatch)
    build_engines(bundle, RTX)
    assert leftovers(bundle) == ["motion/somebody's.engine"]


def test_what_another_process_built_meanwhile_stays_in_the_manifest(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn(monkeypatch)
    waited = []

    @contextlib.contextmanager
    def others_first(lock: Path) -> Iterator[None]:
        if not waited:
            waited.append(lock)
            build_engines(bundle, BuildOptions("rtx", stages=(Stage.MOTION,)))
        with only_one(lock):
            yield

    monkeypatch.setattr(build_module, "only_one", others_first)
    build_engines(bundle, BuildOptions("rtx", stages=(Stage.FLOW,)))
    found = Bundle.open(bundle)
    assert [stage for stage in Stage if found.stage(stage).graphs[0].engines] == [Stage.FLOW, Stage.MOTION]


def refused(bundle: Path, options: BuildOptions, cause: str, command: str) -> None:
    """It is refused with the cause and the command, and everything stays as it was."""
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    with pytest.raises(EngineError, match=cause) as raised:
        build_engines(bundle, options)
    assert raised.value.fix == f"build it again: livemoments build {bundle} {command} --rebuild"
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def rebuilt(bundle: Path, options: BuildOptions, count: int) -> list[EngineFile]:
    """``--rebuild`` replaces what does not fit and nothing else; the old files are gone."""
    options = BuildOptions(**{field: getattr(options, field) for field in BuildOptions.__slots__} | {"rebuild": True})
    _, built = build_engines(bundle, options)
    assert sum(one.is_new for one in built) == count
    assert leftovers(bundle) == []
    assert not any(one.is_new for one in build_engines(bundle, options)[1])
    return [one.engine for one in built if one.is_new]


def test_a_changed_graph_makes_its_engine_stale(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch)
    build_engines(bundle, RTX)
    model = onnx.load(bundle / "motion" / "64x64.onnx")
    model.doc_string = "another"
    change_file(bundle, "motion/64x64.onnx", model.SerializeToString())
    refused(bundle, RTX, "motion/64x64.onnx or its weights changed", "--engine rtx --sm 8.6,8.9")
    (engine,) = rebuilt(bundle, RTX, 1)
    assert engine.path.startswith("motion/")


def test_changed_weights_make_the_engine_stale(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch)
    build_engines(bundle, RTX)
    data = bytearray((bundle / "restoration" / "64x64.data").read_bytes())
    data[0] ^= 1
    change_file(bundle, "restoration/64x64.data", bytes(data))
    refused(bundle, RTX, "restoration/64x64.onnx or its weights changed", "--engine rtx --sm 8.6,8.9")
    rebuilt(bundle, RTX, 1)


def test_another_version_of_the_library_makes_all_stale(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = StandIn(monkeypatch)
    build_engines(bundle, RTX)
    maker.version = "1.8.0"
    cause = "it was built by TensorRT for RTX 1.7.1, and 1.8.0 is installed"
    refused(bundle, RTX, cause, "--engine rtx --sm 8.6,8.9")
    rebuilt(bundle, RTX, 6)


def test_an_engine_for_other_gpus_is_foreign(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch)
    build_engines(bundle, RTX)
    blackwell = BuildOptions("rtx", sm=("8.9", "12.0"))
    refused(bundle, blackwell, r"it was built for SM 8\.6, 8\.9, not for SM 12\.0", "--engine rtx --sm 8.9,12.0")
    assert {engine.sm for engine in rebuilt(bundle, blackwell, 6)} == {("8.9", "12.0")}


def test_tensorrt_engines_belong_to_the_gpu_and_driver_they_were_built_with(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = StandIn(monkeypatch, gpu=H20)
    _, built = build_engines(bundle, FULL)
    assert {(one.engine.gpu, one.engine.driver, one.engine.sm) for one in built} == {
        ("NVIDIA H20", "580.65.06", ("9.0",))
    }
    assert {job.timing_cache for job in maker.jobs} == {str(bundle / ".timings-1.7.1-9.0")}
    maker.gpu = type(H20)(H20.name, H20.sm, "590.1")
    refused(bundle, FULL, "it was built with driver 580.65.06, and this is 590.1", "--engine tensorrt")
    maker.gpu = type(H20)("NVIDIA L4", "8.9", H20.driver)
    refused(bundle, FULL, r"it was built for SM 9\.0, not for SM 8\.9", "--engine tensorrt")
    rebuilt(bundle, FULL, 6)


def test_other_options_make_all_stale_and_are_in_the_command(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = StandIn(monkeypatch)
    build_engines(bundle, RTX)
    wanted = BuildOptions("rtx", sm=("8.6",), flags=("weight-streaming",), optimization_level=4)
    cause = "built without options, and is asked for with --weight-streaming --optimization-level=4"
    refused(bundle, wanted, cause, "--engine rtx --sm 8.6 --weight-streaming --optimization-level=4")
    rebuilt(bundle, wanted, 6)
    assert (maker.jobs[-1].flags, maker.jobs[-1].level) == (("weight-streaming",), 4)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_engine_is_said_and_replaced(bundle: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    StandIn(monkeypatch)
    _, built = build_engines(bundle, RTX)
    file = bundle / built[2].engine.path
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"x" * file.stat().st_size)
    command = r"livemoments build .* --engine rtx --sm 8\.6,8\.9 --stages motion --rebuild"
    with pytest.raises(BundleError, match=rf"build the engine again: {command}"):
        Bundle.open(bundle)
    refused(bundle, RTX, damage, "--engine rtx --sm 8.6,8.9")
    rebuilt(bundle, RTX, 1)
    Bundle.open(bundle)


def test_two_builds_of_one_bundle_do_not_mix(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StandIn(monkeypatch)
    with only_one(bundle / ".build.lock"), pytest.raises(EngineError, match="another process builds"):
        build_engines(bundle, RTX)
    assert all(found == () for found in engines(bundle).values())


def test_what_a_target_cannot_take_is_said_before_anything_is_built(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(bundle / "motion" / "64x64.onnx")
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    change_file(bundle, "motion/64x64.onnx", model.SerializeToString())
    maker = StandIn(monkeypatch)
    with pytest.raises(EngineError, match=r"does not take com\.example\.Conv .*no standard operator") as raised:
        build_engines(bundle, BuildOptions("rtx", stages=(Stage.MOTION,)))
    assert raised.value.fix == f"see all of it: livemoments check {bundle} --target rtx"
    assert maker.jobs == []


def test_a_build_that_will_not_fit_into_memory_does_not_begin(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = StandIn(monkeypatch)
    monkeypatch.setattr(build_module, "available_bytes", lambda: 1 << 20)
    with pytest.raises(ResourceError, match=r"takes about 1\.1 GB of memory, and 0\.0 GB are free"):
        build_engines(bundle, RTX)
    assert maker.jobs == []
    build_engines(bundle, BuildOptions("rtx", check_memory=False))
    assert len(maker.jobs) == 6


def test_the_memory_estimate_grows_with_the_weights() -> None:
    full_size = 2_700_000_000
    assert 8.5e9 < needed_bytes(full_size) < 16 * 2**30
    check_memory("it", full_size, needed_bytes(full_size))
    check_memory("it", full_size, None)
    with pytest.raises(ResourceError):
        check_memory("it", full_size, needed_bytes(full_size) - 1)


@pytest.mark.parametrize(
    ("options", "gpu", "error", "words"),
    [
        (BuildOptions("rtx", sm=("9.0",)), None, UsageError, "does not build for SM 9.0; it builds for 8.6, 8.9, 12.0"),
        (BuildOptions("tensorrt", sm=("8.9",)), H20, UsageError, "--sm has no place"),
        (BuildOptions("tensorrt"), None, EngineError, "no NVIDIA GPU was found here"),
        (
            BuildOptions("rtx", flags=("hardware-compatible",)),
            None,
            UsageError,
            "for the compute capabilities of --sm instead",
        ),
        (BuildOptions("rtx", flags=("version-compatible",)), None, UsageError, "without the lean runtime"),
        (BuildOptions("rtx", flags=("refit",)), None, UsageError, "--refit: .*with a GPU only"),
        (BuildOptions("rtx", flags=("strip-weights",)), None, UsageError, "--strip-weights: .*with a GPU only"),
        (BuildOptions("rtx", timing_cache=Path("t")), None, UsageError, "keeps no timing cache"),
        (BuildOptions("rtx", flags=("sparse",)), None, UsageError, "--sparse: unknown"),
        (BuildOptions("rtx", optimization_level=6), None, UsageError, "no optimization level 6"),
    ],
)
def test_options_that_a_library_does_not_have_are_refused(
    options: BuildOptions, gpu: Any, error: type[Exception], words: str
) -> None:
    found = library(options.library)

    def ask() -> None:
        check_options(found, options, gpu)
        host_of(found, options, gpu)

    with pytest.raises(error, match=words):
        ask()


@pytest.mark.parametrize("flag", ["refit", "strip-weights", "weight-streaming", "hardware-compatible"])
def test_options_of_a_library_that_lacks_them_are_refused(flag: str) -> None:
    found = library("tensorrt", "9.0")
    check_options(found, BuildOptions("tensorrt", flags=(flag,)), H20)
    found.module.BuilderFlag = type("Empty", (), {"__members__": {}})
    found.module.HardwareCompatibilityLevel = None
    with pytest.raises(UsageError, match=rf"--{flag}: TensorRT 9\.0 does not have it"):
        check_options(found, BuildOptions("tensorrt", flags=(flag,)), H20)


def test_manifests_without_engines_read_as_before(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert b"engines" not in (bundle / "manifest.json").read_bytes()
    rewrite_manifest(bundle, manifest)
    assert Bundle.open(bundle).manifest == manifest


def test_the_fraction_of_nested_phases_never_goes_back() -> None:
    phases = Phases()
    phases.start("building", None, 4)
    phases.step("building", 0)
    assert phases.fraction() == 0.25
    phases.start("tactics", "building", 2)
    assert phases.fraction() == 0.25
    phases.start("nodes", "tactics", 2)
    phases.step("nodes", 0)
    assert phases.fraction() == pytest.approx((1 + 0.25) / 4)
    assert phases.current == "nodes"
    phases.finish("nodes")
    phases.step("tactics", 0)
    assert phases.fraction() == pytest.approx((1 + 0.5) / 4)
    phases.finish("tactics")
    assert phases.fraction() == pytest.approx((1 + 0.5) / 4)  # not back to a quarter
    for step in range(1, 4):
        phases.step("building", step)
    assert phases.fraction() == 1.0
    phases.step("of no phase that was begun", 3)
    phases.finish("of no phase that was begun")
    assert phases.fraction() == 1.0


def test_the_command_asks_for_what_was_asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = StandIn(monkeypatch)
    wanted = BuildOptions(
        "rtx", stages=(Stage.FLOW, Stage.MOTION), tiles=(Size(64, 64),), flow_sizes=(Size(480, 640),), batch=2
    )
    build_engines(bundle, wanted)
    maker.version = "1.8.0"
    command = "--engine rtx --sm 8.6,8.9,12.0 --stages flow,motion --tile 64x64 --flow-size 640x480 --batch 2"
    refused(bundle, wanted, "1.8.0 is installed", command)


def test_changed_sources_are_said_before_anything_is_built(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = StandIn(monkeypatch)
    file = bundle / "restoration" / "64x64.data"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"64x64\.data: its SHA-256 is not the manifest's"):
        build_engines(bundle, RTX)
    assert maker.jobs == []
    build_engines(bundle, BuildOptions("rtx", stages=(Stage.MOTION,)))  # which it has nothing to do with


def test_engines_go_along_with_stages_that_a_recipe_leaves_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn(monkeypatch)
    opened, _ = build_engines(bundle, RTX)
    copy_stage(opened, tmp_path / "copy", opened.stage(Stage.MOTION))
    for name in opened.stage(Stage.MOTION).graphs[0].files:
        assert (tmp_path / "copy" / name).read_bytes() == (bundle / name).read_bytes()
    assert len(list((tmp_path / "copy" / "motion").iterdir())) == 2


@pytest.mark.parametrize(("options", "gpu", "total"), [(RTX, None, None), (FULL, H20, 1)], ids=["rtx", "tensorrt"])
def test_progress_says_what_the_library_does(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: BuildOptions, gpu: Any, total: int | None
) -> None:
    StandIn(monkeypatch, gpu=gpu)
    seen = Recorded()
    build_engines(bundle, options, progress=seen)
    assert seen.totals["motion 64x64"] == total
    assert seen.notes["motion 64x64"] == ["half of it", None]
    assert seen.amounts["motion 64x64"] == [0.5, 0.5]
    title = next(name for name in seen.totals if name.startswith("Building"))
    assert sum(seen.amounts[title]) == pytest.approx(seen.totals[title]) == 100
    seen = Recorded()
    build_engines(bundle, options, progress=seen)
    assert seen.totals[title] == 0  # all is kept


class Recorded:
    """A reporter that keeps what it is told, by task."""

    def __init__(self) -> None:
        self.totals: dict[str, float | None] = {}
        self.amounts: dict[str, list[float]] = defaultdict(list)
        self.notes: dict[str, list[str | None]] = defaultdict(list)

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        self.totals[title] = total
        recorded = self

        class One:
            def advance(self, amount: float = 1, note: str | None = None) -> None:
                recorded.amounts[title].append(amount)
                recorded.notes[title].append(note)

        yield One()

    def say(self, line: str) -> None:
        raise AssertionError(line)
