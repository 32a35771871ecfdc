"""Engines: what the base class checks, and the onnxruntime backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
from fake_bundle import make_fake_bundle

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, EngineError, ResourceError, UsageError
from livemoments.ort import EXACT_INTEGERS, TELEMETRY_SWITCH
from livemoments.runtime.backends.base import Array, DeviceArray, Engine, batch_axis, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import Size, Stage, TensorSpec

pytestmark = pytest.mark.threads

IMPORT_LIMIT_S = 0.35
TILE = Size(64, 64)
INPUTS = (TensorSpec("latent", "float32", ("batch", 2, 3)), TensorSpec("kv", "float16", (4, "batch")))
STEP = TensorSpec("step", "int64", ())
OUTPUTS = (TensorSpec("velocity", "float32", ("batch", 2, 3)), TensorSpec("half", "float16", ("batch",)))


class NumpyEngine(Engine):
    """Returns what it was told to."""

    def __init__(self, results: dict[str, np.ndarray] | None = None) -> None:
        super().__init__(Stage.RESTORATION, (*INPUTS, STEP), OUTPUTS)
        self.results = results or {"velocity": np.ones((5, 2, 3), np.float32), "half": np.ones(5, np.float16)}
        self.seen: Mapping[str, Array] = {}

    def _run(self, inputs: Mapping[str, Array], keep: frozenset[str]) -> dict[str, Array]:
        self.seen = inputs
        return dict(self.results)


def good_inputs() -> dict[str, Array]:
    return {"latent": np.zeros((5, 2, 3), np.float32), "kv": np.zeros((4, 5), np.float16), "step": np.array(3)}


def test_good_inputs_run() -> None:
    engine = NumpyEngine()
    assert set(engine.run(good_inputs())) == {"velocity", "half"}
    assert engine.seen["step"].shape == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": None}, "no value for input 'latent'"),
        ({"extra": np.zeros(1)}, "no input 'extra'"),
        ({"latent": np.zeros((5, 2, 3))}, "'latent': expected dtype float32, got float64"),
        ({"latent": np.zeros((5, 2, 4), np.float32)}, r"'latent': expected shape \(batch, 2, 3\), got \(5, 2, 4\)"),
        ({"latent": np.zeros((5, 6), np.float32)}, r"expected shape \(batch, 2, 3\), got \(5, 6\)"),
        ({"latent": np.zeros((0, 2, 3), np.float32)}, r"got \(0, 2, 3\)"),
        ({"kv": np.zeros((4, 6), np.float16)}, "'kv': axis 'batch' is 6 here but 5 in 'latent'"),
        ({"step": np.array([3])}, r"'step': expected shape \(\), got \(1\)"),
    ],
)
def test_bad_inputs_name_stage_tensor_expected_and_got(change: dict[str, np.ndarray | None], message: str) -> None:
    inputs = {name: array for name, array in {**good_inputs(), **change}.items() if array is not None}
    with pytest.raises(EngineError, match=message) as caught:
        NumpyEngine().run(inputs)
    assert "restoration" in str(caught.value)


def test_unknown_keep_and_closed_engines_are_refused() -> None:
    with pytest.raises(EngineError, match="no output 'speed'"):
        NumpyEngine().run(good_inputs(), keep=["speed"])
    engine = NumpyEngine()
    with engine:
        engine.run(good_inputs())
    with pytest.raises(EngineError, match="closed"):
        engine.run(good_inputs())
    engine.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "fix"), [("velocity", "checkpoint's weights"), ("half", "--precision fp32")])
def test_outputs_that_are_not_finite_name_stage_and_tensor(name: str, fix: str, value: float) -> None:
    engine = NumpyEngine()
    engine.results[name].reshape(-1)[-1] = value
    with pytest.raises(EngineError, match=f"'restoration', output '{name}'") as caught:
        engine.run(good_inputs())
    assert fix in str(caught.value.fix)


def test_largest_finite_halves_pass() -> None:
    engine = NumpyEngine()
    engine.results["half"][:2] = 65504, -65504
    assert engine.run(good_inputs())["half"][0] == 65504


def test_outputs_of_another_shape_are_refused() -> None:
    engine = NumpyEngine({"velocity": np.ones((5, 2, 4), np.float32), "half": np.ones(5, np.float16)})
    with pytest.raises(EngineError, match=r"manifest says \(batch, 2, 3\), the engine gave \(5, 2, 4\)"):
        engine.run(good_inputs())


def test_cast_converts_makes_contiguous_and_keeps_scalars() -> None:
    engine = NumpyEngine()
    latent = np.arange(30, dtype=np.float64).reshape(3, 2, 5).transpose(2, 1, 0)
    cast = engine.cast({"latent": latent, "kv": np.ones((4, 5), np.float32), "step": np.array(2, np.int32)})
    assert [a.dtype.name for a in cast.values()] == ["float32", "float16", "int64"]
    assert isinstance(cast["latent"], np.ndarray)
    assert cast["latent"].flags.c_contiguous
    assert np.array_equal(cast["latent"], latent)
    assert cast["step"].shape == ()
    engine.run(cast)


def test_batch_axis_is_found_by_name() -> None:
    assert [batch_axis(spec) for spec in INPUTS] == [0, 1]
    with pytest.raises(EngineError, match="step"):
        batch_axis(STEP)


# --- onnxruntime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("backend") / "bundle", layout="stacked")


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("backend") / "half", dtype="float16")


def random_inputs(engine: Engine, batch: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for spec in engine.inputs:
        shape = tuple(batch if axis == "batch" else 16 if isinstance(axis, str) else axis for axis in spec.shape)
        inputs[spec.name] = np.array(2) if spec.name == "step" else rng.standard_normal(shape).astype(spec.dtype)
    return inputs


@pytest.mark.parametrize("stage", list(Stage))
def test_every_stage_runs_as_onnxruntime_does(bundle: Bundle, stage: Stage) -> None:
    with OrtBackend("cpu", threads=1).open(bundle, stage, TILE) as engine:
        inputs = random_inputs(engine, 3)
        found = engine.run(inputs)
    session = onnxruntime.InferenceSession(str(bundle.path / bundle.graph(stage, TILE).path))
    names = [output.name for output in session.get_outputs()]
    for name, wanted in zip(names, session.run(names, inputs), strict=True):
        np.testing.assert_array_equal(found[name], wanted)


def test_kept_outputs_stay_device_arrays_and_feed_the_next_engine(bundle: Bundle) -> None:
    backend = OrtBackend("cpu", threads=1)
    with backend.open(bundle, Stage.REFERENCE, TILE) as reference:
        inputs = random_inputs(reference, 2)
        host = reference.run(inputs)
        kept = reference.run(inputs, keep=["reference_kv"])
    kv = kept["reference_kv"]
    assert isinstance(kv, DeviceArray)
    assert (kv.shape, kv.dtype, kv.nbytes) == ((2, 2, 2, 16, 8), np.dtype("float32"), to_host(kv).nbytes)
    np.testing.assert_array_equal(to_host(kv), host["reference_kv"])  # still there although its engine is closed
    with backend.open(bundle, Stage.RESTORATION, TILE) as restoration:
        inputs = random_inputs(restoration, 2, seed=1)
        by_device = restoration.run({**inputs, "reference_kv": kv})["velocity"]
        by_host = restoration.run({**inputs, "reference_kv": host["reference_kv"]})["velocity"]
    assert isinstance(by_device, np.ndarray)
    np.testing.assert_array_equal(by_device, by_host)


def test_half_precision_graphs_take_cast_inputs(bundle: Bundle, half_bundle: Bundle) -> None:
    results = []
    for opened in (bundle, half_bundle):
        with OrtBackend("cpu", threads=1).open(opened, Stage.VAE_DECODER, TILE) as engine:
            latent = np.random.default_rng(0).standard_normal((2, 16, 8, 8)).astype(np.float32)
            results.append(to_host(engine.run(engine.cast({"latent": latent}))["image"]))
            with pytest.raises(EngineError, match="expected dtype"):
                engine.run({"latent": latent.astype(np.float64)})
    assert [r.dtype.name for r in results] == ["float32", "float16"]
    error = np.linalg.norm(results[1].astype(np.float32) - results[0]) / np.linalg.norm(results[0])
    assert error < 2e-3


def test_a_kept_array_of_another_dtype_is_cast_through_the_host(bundle: Bundle, half_bundle: Bundle) -> None:
    backend = OrtBackend("cpu", threads=1)
    with backend.open(bundle, Stage.MOTION, TILE) as motion:
        bias = motion.run(random_inputs(motion, 2), keep=["motion_bias"])["motion_bias"]
    with backend.open(half_bundle, Stage.RESTORATION, TILE) as restoration:
        cast = restoration.cast({"motion_bias": bias})["motion_bias"]
    assert cast.dtype == np.float16
    np.testing.assert_array_equal(to_host(cast), to_host(bias).astype(np.float16))


def test_missing_tile_size_is_a_bundle_error(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no graph for 96x64"):
        OrtBackend("cpu").open(bundle, Stage.VAE_ENCODER, Size(64, 96))


@pytest.mark.parametrize("provider", ["cuda", "coreml", "NoSuchExecutionProvider"])
def test_provider_that_is_not_installed_lists_those_that_are(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=f"no provider '{provider}'; it has cpu"):
        OrtBackend(provider)


def test_silent_fallback_to_the_cpu_is_an_error(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the GPU wheel does on a machine without CUDA: it offers the provider and then leaves it out.
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    backend = OrtBackend("cuda")
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: session(path, options, providers=offered[1:])
    )
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider") as caught:
        backend.open(bundle, Stage.MOTION, TILE)
    assert "onnxruntime-gpu" in str(caught.value.fix)


def test_no_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="0 threads"):
        OrtBackend("cpu", threads=0)


def test_a_damaged_graph_names_its_file(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle")
    file = bundle.path / bundle.graph(Stage.MOTION, TILE).path
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"motion/64x64\.onnx"):
        OrtBackend("cpu").open(bundle, Stage.MOTION, TILE)


def test_missing_external_weights_are_an_engine_error(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle")
    (bundle.path / bundle.graph(Stage.RESTORATION, TILE).weights[0]).unlink()
    with pytest.raises(EngineError, match=r"restoration/64x64\.onnx"):
        OrtBackend("cpu").open(bundle, Stage.RESTORATION, TILE)


def test_manifest_that_contradicts_the_graph_is_refused(bundle: Bundle) -> None:
    entry = bundle.stage(Stage.MOTION)
    renamed = tuple(msgspec.structs.replace(s, name="speed") for s in entry.graphs[0].inputs)
    graph = msgspec.structs.replace(entry.graphs[0], inputs=renamed)
    stages = {**bundle.manifest.stages, "motion": msgspec.structs.replace(entry, graphs=(graph,))}
    changed = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, stages=stages))
    with pytest.raises(EngineError, match="manifest lists the inputs speed, the graph has flow"):
        OrtBackend("cpu").open(changed, Stage.MOTION, TILE)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), ResourceError),
        (
            RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 99"),
            ResourceError,
        ),
        (RuntimeError("std::bad_alloc"), ResourceError),
        (RuntimeError("CUDA failure 2: out of memory"), ResourceError),
        (RuntimeError("Non-zero status code returned while running Conv node"), EngineError),
    ],
)
def test_errors_in_a_run_are_translated(error: Exception, kind: type[Exception], bundle: Bundle) -> None:
    class Broken:
        def run(self, *_args: object) -> None:
            raise error

    engine = OrtBackend("cpu").open(bundle, Stage.MOTION, TILE)
    engine._session = Broken()
    with pytest.raises(kind, match="motion"):
        engine.run(random_inputs(engine, 1))


def test_interrupts_are_not_translated(bundle: Bundle) -> None:
    class Interrupted:
        def run(self, *_args: object) -> None:
            raise KeyboardInterrupt

    engine = OrtBackend("cpu").open(bundle, Stage.MOTION, TILE)
    engine._session = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        engine.run(random_inputs(engine, 1))


def test_memory_options_reach_the_session(bundle: Bundle) -> None:
    options = OrtBackend("cpu", threads=3, memory_arena=False, memory_pattern=False)._session_options(Stage.FLOW)
    assert (options.intra_op_num_threads, options.enable_cpu_mem_arena, options.enable_mem_pattern) == (3, False, False)
    assert options.get_session_config_entry(EXACT_INTEGERS) == "1"
    arenas = {stage: OrtBackend("cpu")._session_options(stage).enable_cpu_mem_arena for stage in Stage}
    assert [str(stage) for stage, kept in arenas.items() if kept] == ["motion", "reference", "restoration"]


# --- the package


def test_importing_the_runtime_is_quick_and_loads_no_framework() -> None:
    code = (
        "import json, resource, sys; import livemoments.runtime; used = resource.getrusage(resource.RUSAGE_SELF);"
        "heavy = [m for m in ('torch', 'onnx', 'onnxruntime', 'diffusers') if m in sys.modules];"
        "print(json.dumps([heavy, used.ru_utime + used.ru_stime]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        for _ in range(3)
    ]
    assert all(heavy == [] for heavy, _ in runs)
    assert min(seconds for _, seconds in runs) < IMPORT_LIMIT_S


def test_public_names_exist() -> None:
    import livemoments.runtime as runtime

    assert all(getattr(runtime, name) is not None for name in runtime.__all__)
    assert callable(runtime.restore)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = runtime.no_such_name


def test_onnxruntimes_telemetry_is_off_unless_wanted(tmp_path: Path) -> None:
    """Where it is on, the import already leaves a session file in the temporary folder."""
    code = (
        "from livemoments.runtime.backends.ort import OrtBackend; import os; OrtBackend('cpu'); print(os.environ[{!r}])"
    )
    clean = {name: value for name, value in os.environ.items() if name != TELEMETRY_SWITCH}
    for given, found in (({}, "1"), ({TELEMETRY_SWITCH: "0"}, "0")):
        command = [sys.executable, "-c", code.format(TELEMETRY_SWITCH)]
        environment = {**clean, "TMPDIR": str(tmp_path), **given}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found
        if not given:
            assert list(tmp_path.iterdir()) == []
