"""onnxruntime's providers: which are there, what their sessions are told, and that nothing goes to the CPU in silence.

No GPU is at hand: a provider that is asked for here is named to a wheel that has the CPU alone, or its library is
stood in for; what CUDA's own sessions do with the shipped graphs is in ``test_ort_cuda.py`` (``make cuda``).
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from fake_bundle import make_fake_bundle
from restore_images import FRAME, KEY_FRAME, PHOTO

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, UsageError
from livemoments.ort import open_session, session_options
from livemoments.runtime import restore
from livemoments.runtime.backends import ort, ort_providers
from livemoments.runtime.backends.base import Array, Engine, to_host
from livemoments.runtime.backends.ort import OrtBackend, OrtEngine
from livemoments.runtime.backends.ort_buffers import MOST_GRAPHS, DeviceBuffers, output_shapes
from livemoments.runtime.backends.ort_placement import RECORD, placement_remark
from livemoments.runtime.backends.ort_providers import PROVIDERS, DeviceLimits, add_to_options, check_form
from livemoments.runtime.options import RestoreOptions
from livemoments.types import Size, Stage, TensorSpec

TILE = Size(64, 64)
RTX = PROVIDERS["rtx"]


@pytest.fixture(scope="module", params=["stacked", "per-block"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("providers") / "bundle", layout=request.param)


def random_inputs(engine: Engine, batch: int, rng: np.random.Generator) -> dict[str, Array]:
    shapes = {
        s.name: tuple(batch if a == "batch" else 16 if isinstance(a, str) else a for a in s.shape)
        for s in engine.inputs
    }
    return {
        s.name: np.array(2) if s.name == "step" else rng.standard_normal(shapes[s.name]).astype(s.dtype)
        for s in engine.inputs
    }


def retold(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with another manifest, in memory."""
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, **changes))


class InPlace(OrtBackend):
    """The CPU provider with the buffers of a session on a device."""

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> OrtEngine:
        engine = super().open(bundle, stage, size)
        engine._buffers = DeviceBuffers("cpu")
        return engine


# --- tensors that stay at their addresses


@pytest.mark.parametrize("stage", list(Stage))
def test_bound_runs_equal_unbound_ones(bundle: Bundle, stage: Stage) -> None:
    rng = np.random.default_rng()
    with OrtBackend("cpu", 1).open(bundle, stage, TILE) as plain, InPlace("cpu", 1).open(bundle, stage, TILE) as bound:
        for batch in (2, 1, 2):
            inputs = random_inputs(plain, batch, rng)
            wanted = plain.run(inputs)
            for keep in ((), tuple(wanted)):
                found = bound.run(inputs, keep=keep)
                for name, array in wanted.items():
                    np.testing.assert_array_equal(to_host(found[name]), to_host(array))


def test_results_on_the_host_are_not_overwritten_by_the_next_run(bundle: Bundle) -> None:
    rng = np.random.default_rng()
    with InPlace("cpu", 1).open(bundle, Stage.VAE_ENCODER, TILE) as engine:
        first = engine.run(random_inputs(engine, 1, rng))["mean"]
        before = to_host(first).copy()
        engine.run(random_inputs(engine, 1, rng))
    np.testing.assert_array_equal(to_host(first), before)


def test_a_restored_photo_is_the_same_with_keys_and_values_in_place(bundle: Bundle) -> None:
    for policy in ("per-step", "frozen", "phase-split"):
        plain = restore(bundle, FRAME, PHOTO, KEY_FRAME, reference=policy, backend=OrtBackend("cpu", 1))
        bound = restore(bundle, FRAME, PHOTO, KEY_FRAME, reference=policy, backend=InPlace("cpu", 1))
        np.testing.assert_array_equal(bound.image, plain.image)


def test_kept_arrays_have_buffers_of_their_own_until_they_are_let_go(bundle: Bundle) -> None:
    rng = np.random.default_rng()
    with InPlace("cpu", 1).open(bundle, Stage.MOTION, TILE) as engine:
        held = engine.run(random_inputs(engine, 1, rng), keep=["motion_bias"])["motion_bias"]
        values, place = to_host(held).copy(), held.value.data_ptr()  # type: ignore[union-attr]
        other = engine.run(random_inputs(engine, 1, rng), keep=["motion_bias"])["motion_bias"]
        np.testing.assert_array_equal(to_host(held), values)
        assert other.value.data_ptr() != place  # type: ignore[union-attr]
        del held
        again = engine.run(random_inputs(engine, 1, rng), keep=["motion_bias"])["motion_bias"]
        assert again.value.data_ptr() == place  # type: ignore[union-attr]
        final = to_host(again).copy()
    np.testing.assert_array_equal(to_host(again), final)  # although its engine is closed


def test_a_run_that_fails_gives_its_buffers_back(bundle: Bundle) -> None:
    class Broken:
        def io_binding(self) -> Any:
            raise RuntimeError("a kernel failed")

    engine = InPlace("cpu", 1).open(bundle, Stage.MOTION, TILE)
    engine.run(random_inputs(engine, 1, np.random.default_rng()), keep=["motion_bias"])
    buffers = engine._buffers
    assert buffers is not None
    (free,) = buffers._free.values()
    assert len(free) == 1
    engine._session = Broken()
    with pytest.raises(EngineError, match="a kernel failed"):
        engine.run(random_inputs(engine, 1, np.random.default_rng()), keep=["motion_bias"])
    assert len(free) == 1


def test_a_recorded_graph_is_one_set_of_addresses() -> None:
    buffers = DeviceBuffers("cpu")
    spec = TensorSpec("kv", "float16", ("batch", 4))
    values = [buffers.kept(spec, (1, 4)) for _ in range(MOST_GRAPHS + 1)]
    assert [buffers.graph_of([value]) for value in values] == [*range(MOST_GRAPHS), -1]
    assert buffers.graph_of([values[3]]) == 3
    assert buffers.graph_of([values[3], values[4]]) == -1  # another set, and there are enough


def test_a_session_that_records_graphs_is_told_which(bundle: Bundle) -> None:
    engine = InPlace("cpu", 1).open(bundle, Stage.MOTION, TILE)
    engine._records_graphs = True
    session, told = engine._session, []

    class Told:
        def io_binding(self) -> Any:
            return session.io_binding()

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            told.append(options.get_run_config_entry("gpu_graph_id"))
            session.run_with_iobinding(binding, options)

    engine._session = Told()
    rng = np.random.default_rng()
    for batch in (1, 1, 2, 1):
        engine.run(random_inputs(engine, batch, rng))
    assert told == ["0", "0", "1", "0"]


def test_shapes_of_outputs_follow_the_free_axes_of_inputs() -> None:
    inputs = (TensorSpec("image", "float32", ("batch", 3, "height", "width")),)
    flow = TensorSpec("flow", "float32", ("batch", 2, "height", "width"))
    assert output_shapes((flow,), inputs, {"image": (2, 3, 64, 96)}) == {"flow": (2, 2, 64, 96)}
    other = TensorSpec("boxes", "float32", ("found", 4))
    assert output_shapes((flow, other), inputs, {"image": (2, 3, 64, 96)}) is None


# --- what sessions are told


def settings(provider: str, bundle: Bundle, limits: DeviceLimits | None = None) -> Any:
    graph = bundle.graph(Stage.RESTORATION, TILE)
    return add_to_options(session_options(), PROVIDERS[provider], bundle, graph, limits or DeviceLimits())


def test_cuda_keeps_fp32_and_its_memory_in_bounds(bundle: Bundle) -> None:
    (cuda, found), (cpu, nothing) = settings("cuda", bundle)
    assert (cuda, cpu, nothing) == ("CUDAExecutionProvider", "CPUExecutionProvider", {})
    assert found["use_tf32"] == "0"
    assert found["cudnn_conv_algo_search"] == "HEURISTIC"
    assert {"gpu_mem_limit", "enable_cuda_graph"}.isdisjoint(found)
    limited = settings("cuda", bundle, DeviceLimits(6 << 30, cuda_graphs=True))[0][1]
    assert (limited["gpu_mem_limit"], limited["enable_cuda_graph"]) == (str(6 << 30), "1")


def test_what_tensorrt_does_not_take_goes_to_cuda_first(bundle: Bundle, tmp_path: Path) -> None:
    found = settings("tensorrt", bundle, DeviceLimits(1 << 30, cuda_graphs=True))
    assert [name for name, _ in found] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert found[0][1] == {
        "trt_fp16_enable": "0",
        "trt_max_workspace_size": str(1 << 30),
        "trt_cuda_graph_enable": "1",
    }
    half = make_fake_bundle(tmp_path / "half", dtype="float16")
    assert settings("tensorrt", half)[0][1]["trt_fp16_enable"] == "1"


def test_float8_is_left_as_it_is(bundle: Bundle) -> None:
    for told, wanted in (({}, False), ({"recipe": "fp8"}, True), ({"recipe": "int8"}, False)):
        options = session_options()
        changed = retold(bundle, **told)
        add_to_options(options, PROVIDERS["cpu"], changed, changed.graph(Stage.MOTION, TILE), DeviceLimits())
        try:
            found = options.get_session_config_entry("session.disable_quant_qdq") == "1"
        except RuntimeError:  # it was not set
            found = False
        assert found == wanted


@pytest.mark.parametrize("name", ["cpu", "coreml", "CPUExecutionProvider"])
def test_limits_of_a_gpu_are_refused_where_there_is_none(name: str) -> None:
    for limits in (DeviceLimits(1 << 30), DeviceLimits(cuda_graphs=True)):
        with pytest.raises(UsageError, match=f"'{name}' knows neither CUDA graphs") as caught:
            OrtBackend(name, limits=limits)
        assert "cuda, tensorrt, rtx" in str(caught.value.fix)
    with pytest.raises(UsageError, match="knows neither"):
        RestoreOptions(cuda_graphs=True).open_backend()
    with pytest.raises(UsageError, match="0 bytes of a GPU's memory"):
        RestoreOptions(gpu_memory_bytes=0).check()


@pytest.mark.parametrize(
    ("provider", "target", "message"),
    [
        ("cuda", "tensorrt", "standard one.*--target onnx"),
        ("tensorrt", "onnx", "onnxruntime's own.*--target tensorrt"),
        ("rtx", "onnx", "onnxruntime's own.*--target tensorrt"),
        ("cpu", "coreml", "Core ML.*--target onnx"),
    ],
)
def test_a_graph_of_the_wrong_form_names_its_export(bundle: Bundle, provider: str, target: str, message: str) -> None:
    with pytest.raises(EngineError, match=message.split(".*")[0]) as caught:
        check_form(PROVIDERS[provider], retold(bundle, target=target, recipe="fp8"))
    assert message.split(".*")[1] in str(caught.value.fix)
    assert provider == "cpu" or "--recipe fp8" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("provider", "target"), [("cuda", "onnx"), ("rtx", "tensorrt"), ("cpu", "onnx"), ("cpu", "tensorrt")]
)
def test_a_graph_of_the_right_form_passes(bundle: Bundle, provider: str, target: str) -> None:
    check_form(PROVIDERS[provider], retold(bundle, target=target))


# --- nodes on the CPU


def test_nodes_on_the_cpu_are_counted_by_operator(bundle: Bundle) -> None:
    options = session_options()
    options.add_session_config_entry(RECORD, "1")
    session = open_session(bundle.path / bundle.graph(Stage.RESTORATION, TILE).path, options)
    remark = placement_remark(session, Stage.RESTORATION, "cuda")
    assert remark is not None
    count, total = map(int, remark.removeprefix("stage 'restoration': ").split(" nodes")[0].split(" of "))
    assert count == total > 10
    assert "run on the CPU, not on cuda: " in remark
    assert "MatMul" in remark


def test_nodes_elsewhere_are_no_remark_and_an_old_onnxruntime_says_so() -> None:
    node = types.SimpleNamespace(op_type="Conv")

    def session(*names: str) -> Any:
        parts = [types.SimpleNamespace(ep_name=name, get_nodes=lambda: [node, node]) for name in names]
        return types.SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)

    assert placement_remark(session("CUDAExecutionProvider", "CUDAExecutionProvider"), Stage.FLOW, "cuda") is None
    mixed = placement_remark(session("CUDAExecutionProvider", "CPUExecutionProvider"), Stage.FLOW, "cuda")
    assert mixed == "stage 'flow': 2 of 4 nodes run on the CPU, not on cuda: 2 Conv"
    assert "does not tell" in str(placement_remark(object(), Stage.FLOW, "cuda"))


def pretend(monkeypatch: pytest.MonkeyPatch, *, graphs_fail: bool = False) -> list[Any]:
    """CUDA sessions that are the CPU's: they name CUDA first, and refuse CUDA graphs if they should."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    asked: list[Any] = []

    class Session:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def start(path: Any, options: Any, *, providers: Any) -> Any:
        asked.append(dict(providers))
        if graphs_fail and "enable_cuda_graph" in dict(providers)["CUDAExecutionProvider"]:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user\nas nodes …")
        return Session(open_session(path, options))

    monkeypatch.setattr(ort, "open_session", start)
    monkeypatch.setattr(ort, "DeviceBuffers", lambda _device: DeviceBuffers("cpu"))
    return asked


def test_a_restoration_names_every_stage_with_nodes_on_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = restore(bundle, FRAME, PHOTO, KEY_FRAME, threads=1)
    pretend(monkeypatch)
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, provider="cuda", threads=1)
    remarks = found.metadata["engine_remarks"]
    assert sorted(remark.split("'")[1] for remark in remarks) == sorted(Stage)
    assert all("not on cuda" in remark for remark in remarks)
    assert "engine_remarks" not in usual.metadata
    np.testing.assert_array_equal(found.image, usual.image)


def test_a_stage_that_takes_no_cuda_graph_runs_without_and_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend(monkeypatch, graphs_fail=True)
    backend = OrtBackend("cuda", 1, limits=DeviceLimits(1 << 30, cuda_graphs=True))
    engine = backend.open(bundle, Stage.MOTION, TILE)
    assert [dict(names)["CUDAExecutionProvider"].get("enable_cuda_graph") for names in asked] == ["1", None]
    assert all(names["CUDAExecutionProvider"]["gpu_mem_limit"] == str(1 << 30) for names in asked)
    assert "'motion' runs without CUDA graphs" in engine.remarks[0]
    assert "cannot use the graph capture" in engine.remarks[0]
    assert not engine._records_graphs
    pretend(monkeypatch)
    assert OrtBackend("cuda", 1, limits=DeviceLimits(cuda_graphs=True)).open(bundle, Stage.MOTION, TILE)._records_graphs


# --- plugins


class Plugin:
    """NVIDIA's plugin as far as we call it; its device is the CPU's, which sessions then run on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, error: str = "", devices: bool = True) -> None:
        self.registered: list[tuple[str, str]] = []
        self.error = error
        module = types.ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
        module.get_library_path = lambda: "/plugins/rtx.so"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(ort_providers, "_REGISTERED", set())
        monkeypatch.setattr(onnxruntime, "register_execution_provider_library", self._register)
        cpu = onnxruntime.get_ep_devices()
        self.provider = ort_providers.Provider("rtx", cpu[0].ep_name, target="tensorrt", plugin=RTX.plugin)
        monkeypatch.setitem(PROVIDERS, "rtx", self.provider)
        monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: cpu if devices else [])

    def _register(self, name: str, path: str) -> None:
        if self.error:
            raise RuntimeError(self.error)
        self.registered.append((name, path))


def test_a_plugin_is_registered_once_and_its_device_runs_the_session(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Plugin(monkeypatch)
    standard = retold(bundle, target="tensorrt")
    rng = np.random.default_rng()
    for _ in range(2):
        with OrtBackend("rtx", 1).open(standard, Stage.MOTION, TILE) as engine:
            inputs = random_inputs(engine, 2, rng)
            found = engine.run(inputs)["motion_bias"]
    assert plugin.registered == [("CPUExecutionProvider", "/plugins/rtx.so")]
    with OrtBackend("cpu", 1).open(bundle, Stage.MOTION, TILE) as engine:
        np.testing.assert_array_equal(to_host(found), to_host(engine.run(inputs)["motion_bias"]))


def test_a_plugin_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(UsageError, match="a plugin that is not installed") as caught:
        OrtBackend("rtx")
    assert caught.value.fix == "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"


def test_a_plugin_without_a_driver_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = "libcuda.so.1: cannot open shared object file: No such file or directory"
    Plugin(monkeypatch, error=f"[ONNXRuntimeError] : 1 : FAIL : Failed to load library /x.so with error: {cause}")
    with pytest.raises(EngineError, match="does not load: libcuda") as caught:
        OrtBackend("rtx")
    assert "/x.so" not in caught.value.message


def test_a_plugin_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Plugin(monkeypatch, devices=False)
    with pytest.raises(UsageError, match="finds no GPU that it serves"):
        OrtBackend("rtx")
