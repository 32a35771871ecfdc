"""The back-end of TensorRT's engines, on a GPU that is the CPU and watches every access (``standin_gpu.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from engine_support import H20
from fake_bundle import make_fake_bundle
from restore_images import FRAME, KEY_FRAME, PHOTO
from standin_gpu import RaceError, StandInGpu, StandInProgram

from livemoments.bundle import Bundle
from livemoments.engine_files import EngineHost
from livemoments.errors import EngineError, UsageError
from livemoments.manifest import EngineFile
from livemoments.runtime import restore
from livemoments.runtime.backends.base import Array, DeviceArray, Engine, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.options import RestoreOptions
from livemoments.tensorrt import backend as module
from livemoments.tensorrt.backend import TensorRtBackend
from livemoments.tensorrt.engine import MOST_RECORDINGS, TensorRtEngine
from livemoments.tensorrt.library import Library
from livemoments.tensorrt.ordering import Memories, queue
from livemoments.tensorrt.program import Port
from livemoments.types import Size, Stage

TILE = Size(64, 64)
BATCHED_LIMIT = 1e-5
"""Relative L2: products of two tiles at once are summed in another order than one tile's."""


def with_engines(bundle: Bundle, batch: int) -> Bundle:
    """The bundle as if engines of every graph had been built on an H20."""
    stages = {}
    for name, entry in bundle.manifest.stages.items():
        graphs = []
        for graph in entry.graphs:
            engine = EngineFile(
                path=graph.path.replace(".onnx", f"-b{batch}.engine"),
                library="tensorrt",
                version="11.0.0",
                size=str(TILE) if graph.size == "any" else graph.size,
                batch=batch,
                sm=(H20.sm,),
                graph_sha256=bundle.graph_digest(graph),
                driver=H20.driver,
            )
            graphs.append(msgspec.structs.replace(graph, engines=(engine,)))
        stages[name] = msgspec.structs.replace(entry, graphs=tuple(graphs))
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, stages=stages))


class StandIn(TensorRtBackend):
    """The back-end with a GPU and engines that are stood in for."""

    def __init__(self, batch: int = 1) -> None:
        self.gpu = StandInGpu()
        self.programs: list[StandInProgram] = []
        self.opening: Any = None
        super().__init__("native-tensorrt", batch)

    def open(self, bundle: Bundle, stage: Stage, size: Size) -> TensorRtEngine:
        self.opening = bundle, bundle.graph(stage, size), size
        return super().open(bundle, stage, size)

    def _open_device(self) -> StandInGpu:
        return self.gpu

    def _load(self, library: Library, path: Path) -> StandInProgram:
        bundle, graph, size = self.opening
        assert path == bundle.path / graph.engines[0].path
        self.programs.append(StandInProgram(self.gpu, bundle.path, graph, size, self._batch))
        return self.programs[-1]


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_library", lambda name: Library(name, None, "11.0.0"))
    monkeypatch.setattr(module, "find_gpu", lambda: H20)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("native") / "bundle")


@pytest.fixture
def pair(bundle: Bundle) -> Iterator[tuple[TensorRtEngine, TensorRtEngine, StandIn]]:
    """ReferenceNet and RestorationNet."""
    backend = StandIn()
    built = with_engines(bundle, 1)
    with backend.open(built, Stage.REFERENCE, TILE) as first, backend.open(built, Stage.RESTORATION, TILE) as second:
        yield first, second, backend


def random_inputs(engine: Engine, batch: int, rng: np.random.Generator) -> dict[str, Array]:
    axes = {"batch": batch, "height": TILE.height, "width": TILE.width}
    shapes = {spec.name: [axes.get(axis, axis) for axis in spec.shape] for spec in engine.inputs}  # type: ignore[arg-type, misc]
    return {
        s.name: np.array(rng.integers(6)) if s.name == "step" else rng.standard_normal(shapes[s.name]).astype(s.dtype)
        for s in engine.inputs
    }


def kv_of(engine: Engine, inputs: dict[str, Array]) -> dict[str, Array]:
    return engine.run(inputs, keep=[spec.name for spec in engine.outputs])


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("stage", list(Stage))
def test_engines_compute_what_the_graphs_do(bundle: Bundle, stage: Stage, batch: int) -> None:
    rng = np.random.default_rng()
    built = with_engines(bundle, batch)
    with StandIn(batch).open(built, stage, TILE) as engine, OrtBackend("cpu", 1).open(bundle, stage, TILE) as plain:
        for tiles in (batch, 1, batch, batch, 1):
            inputs = random_inputs(plain, tiles, rng)
            wanted = plain.run(inputs)
            for keep in ((), tuple(wanted)):
                for name, array in engine.run(inputs, keep=keep).items():
                    assert array.shape == wanted[name].shape
                    assert distance(to_host(array), to_host(wanted[name])) < BATCHED_LIMIT


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        (1, {"reference": "per-step"}),
        (2, {"reference": "every-2"}),
        (2, {"reference": "frozen", "residency": "phases"}),
        (1, {"reference": "phase-split"}),
    ],
)
def test_a_photo_is_restored_as_with_the_graphs(bundle: Bundle, batch: int, options: dict[str, Any]) -> None:
    backend = StandIn(batch)
    common = {"batch": batch, "flow": "dis", "steps": 6, **options}
    found = restore(with_engines(bundle, batch), FRAME, PHOTO, KEY_FRAME, backend=backend, **common)
    wanted = restore(bundle, FRAME, PHOTO, KEY_FRAME, threads=1, **common)
    assert np.abs(found.image.astype(int) - wanted.image.astype(int)).max() <= 1
    assert found.metadata["provider"] == "tensorrt:native-tensorrt"
    assert found.metadata["peak_device_bytes"] > 2000
    assert "peak_device_bytes" not in wanted.metadata
    assert all(program.is_closed for program in backend.programs)
    backend._memories.trim()
    assert backend._memories.used_bytes == 0
    assert backend.gpu.memory == {}, "something was not freed"


def test_keys_and_values_stay_on_the_device_and_in_their_places(
    pair: tuple[TensorRtEngine, TensorRtEngine, StandIn],
) -> None:
    first, second, backend = pair
    rng = np.random.default_rng()
    places = []
    for _ in range(5):
        kv = kv_of(first, random_inputs(first, 1, rng))
        assert all(isinstance(array, DeviceArray) for array in kv.values())
        places.append([array.buffer.memory.address for array in kv.values()])  # type: ignore[union-attr]
        second.run({**random_inputs(second, 1, rng), **kv})
        del kv
    assert all(place == places[0] for place in places)
    # two slots of inputs: the first run of each is launched, the second recorded, from then on both are replayed
    assert backend.gpu.launches == 4
    assert backend.gpu.replays == 6


def test_addresses_are_bound_once_a_set(pair: tuple[TensorRtEngine, TensorRtEngine, StandIn]) -> None:
    first, _, backend = pair
    rng = np.random.default_rng()
    for _ in range(4):
        first.run(random_inputs(first, 1, rng))
    bound = backend.programs[0].binds
    for _ in range(6):
        first.run(random_inputs(first, 1, rng))
    assert backend.programs[0].binds == bound


def test_two_sets_of_keys_and_values_are_held_at_once(
    pair: tuple[TensorRtEngine, TensorRtEngine, StandIn], bundle: Bundle
) -> None:
    """The next step's are queued before this step's are read: with twice the memory, and the same numbers."""
    first, second, _ = pair
    rng = np.random.default_rng()
    plain = OrtBackend("cpu", 1)
    reference, restoration = plain.open(bundle, Stage.REFERENCE, TILE), plain.open(bundle, Stage.RESTORATION, TILE)
    given = [(random_inputs(first, 1, rng), random_inputs(second, 1, rng)) for _ in range(6)]
    ahead = kv_of(first, given[0][0])
    for step, (inputs, others) in enumerate(given):
        kv = ahead
        if step + 1 < len(given):
            ahead = kv_of(first, given[step + 1][0])
        found = second.run({**others, **kv})["velocity"]
        wanted = restoration.run({**others, **reference.run(inputs)})["velocity"]
        np.testing.assert_allclose(to_host(found), to_host(wanted), rtol=1e-4, atol=1e-5)
        del kv


@pytest.mark.parametrize("policy", ["per-step", "every-2", "frozen"])
def test_the_next_keys_and_values_are_queued_before_a_step_is_waited_for(bundle: Bundle, policy: str) -> None:
    order: list[str] = []

    class Watched(StandInProgram):
        def enqueue(self, stream: int) -> None:
            super().enqueue(stream)
            order.append(self.stage)

    class Watching(StandIn):
        def _load(self, library: Library, path: Path) -> StandInProgram:
            opened, graph, size = self.opening
            program = Watched(self.gpu, opened.path, graph, size, self._batch)
            program.stage = path.parent.name
            return program

    backend = Watching()
    backend.gpu.record = lambda stream, queue: None  # type: ignore[method-assign, assignment]  # every run is launched
    options = {"reference": policy, "flow": "dis", "steps": 6}
    found = restore(with_engines(bundle, 1), FRAME, PHOTO, KEY_FRAME, backend=backend, **options)
    wanted = restore(bundle, FRAME, PHOTO, KEY_FRAME, threads=1, **options)
    assert np.abs(found.image.astype(int) - wanted.image.astype(int)).max() <= 1
    sampled = [stage for stage in order if stage in ("motion", "reference", "restoration")]
    first = sampled.index("restoration")
    assert len(found.plan.tiles) > 1
    ahead = (
        ["motion", "reference", "motion", "reference"] if policy == "frozen" else ["motion", "reference", "reference"]
    )
    assert sampled[:first] == ahead
    assert sampled.count("motion") == len(found.plan.tiles)
    renewals = {"per-step": 6, "every-2": 3, "frozen": 1}[policy]
    assert sampled.count("reference") == renewals * len(found.plan.tiles)


def test_kept_arrays_outlive_their_engine(bundle: Bundle) -> None:
    backend = StandIn()
    engine = backend.open(with_engines(bundle, 1), Stage.REFERENCE, TILE)
    inputs = random_inputs(engine, 1, np.random.default_rng())
    wanted = {name: to_host(array) for name, array in engine.run(inputs).items()}
    kept = kv_of(engine, inputs)
    engine.close()
    for name, array in kept.items():
        np.testing.assert_array_equal(to_host(array), wanted[name])


def test_many_sets_of_addresses_are_not_all_recorded(pair: tuple[TensorRtEngine, TensorRtEngine, StandIn]) -> None:
    first, _, backend = pair
    rng = np.random.default_rng()
    held = [kv_of(first, random_inputs(first, 1, rng)) for _ in range(2 * MOST_RECORDINGS)]
    assert backend.gpu.replays == 0
    assert len(first._recordings) == MOST_RECORDINGS
    del held


# --- the order of accesses: each remedy, left out, is noticed


def ways_without_order(gpu: StandInGpu, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, what, lambda *_: None)


def restored_pairs(pair: tuple[TensorRtEngine, TensorRtEngine, StandIn], rounds: int = 6) -> None:
    first, second, _ = pair
    rng = np.random.default_rng()
    for _ in range(rounds):
        second.run({**random_inputs(second, 1, rng), **kv_of(first, random_inputs(first, 1, rng))})


def test_streams_that_do_not_wait_are_a_race(
    pair: tuple[TensorRtEngine, TensorRtEngine, StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    restored_pairs(pair)
    ways_without_order(pair[2].gpu, "wait", monkeypatch)
    with pytest.raises(RaceError):
        restored_pairs(pair)


def test_a_buffer_that_is_still_read_is_not_overwritten() -> None:
    """What keys and values go through that are dropped on the host while RestorationNet, queued, still reads them."""

    def use(*, forget: bool) -> None:
        gpu = StandInGpu()
        memories = Memories(gpu)
        writer, reader = gpu.make_stream(), gpu.make_stream()
        buffer = memories.take(16)
        address = buffer.memory.address
        for _ in range(2):
            if forget:
                buffer.reads.clear()
            queue(gpu, writer, lambda: gpu.launch(writer, lambda: None, (), (address,)), writes=[buffer])
            queue(gpu, reader, lambda: gpu.launch(reader, lambda: None, (address,), ()), reads=[buffer])

    use(forget=False)
    with pytest.raises(RaceError, match="no event puts after a read"):
        use(forget=True)


def test_results_are_not_there_before_the_host_waits(
    pair: tuple[TensorRtEngine, TensorRtEngine, StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, backend = pair
    with monkeypatch.context() as patch:
        ways_without_order(backend.gpu, "synchronize", patch)
        with pytest.raises(EngineError, match="NaN or infinity"):
            first.run(random_inputs(first, 1, np.random.default_rng()))


def test_an_input_is_not_overwritten_while_it_is_copied(
    pair: tuple[TensorRtEngine, TensorRtEngine, StandIn], bundle: Bundle
) -> None:
    """Runs that are only queued: a third one takes the first one's buffers, and must wait for its copies."""
    first, _, _ = pair
    rng = np.random.default_rng()
    given = [random_inputs(first, 1, rng) for _ in range(7)]
    found = [kv_of(first, inputs) for inputs in given]
    with OrtBackend("cpu", 1).open(bundle, Stage.REFERENCE, TILE) as plain:
        for inputs, kv in zip(given, found, strict=True):
            for name, wanted in plain.run(inputs).items():
                np.testing.assert_array_equal(to_host(kv[name]), to_host(wanted))


# --- what may not be opened


def test_a_stale_engine_names_the_command_that_builds_it(bundle: Bundle) -> None:
    built = with_engines(bundle, 1)
    backend = StandIn()
    backend._host = EngineHost("tensorrt", "11.1.0", (H20.sm,), H20.driver)
    with pytest.raises(EngineError, match=r"built by TensorRT 11\.0\.0, and 11\.1\.0 is installed") as caught:
        backend.open(built, Stage.MOTION, TILE)
    assert f"livemoments build {bundle.path} --engine tensorrt" in str(caught.value.fix)
    assert "--rebuild" in str(caught.value.fix)
    with pytest.raises(EngineError, match="no TensorRT engine for 64x64 tiles in batches of 2") as caught:
        StandIn(2).open(built, Stage.MOTION, TILE)
    assert "--batch 2" in str(caught.value.fix)


def test_an_engine_of_other_tensors_is_refused_and_closed(bundle: Bundle) -> None:
    built = with_engines(bundle, 1)

    class Other(StandIn):
        def _load(self, library: Library, path: Path) -> StandInProgram:
            program = super()._load(library, path)
            program.ports["flow"] = Port(True, (9, 9), "float32")
            return program

    backend = Other()
    with pytest.raises(
        EngineError, match=r"'motion', tensor 'flow': the manifest says.*the engine has float32 \(9, 9\)"
    ):
        backend.open(built, Stage.MOTION, TILE)
    assert backend.programs[0].is_closed


def test_more_tiles_than_the_engine_takes_are_refused(pair: tuple[TensorRtEngine, TensorRtEngine, StandIn]) -> None:
    with pytest.raises(EngineError, match="2 tiles for an engine of 1"):
        pair[0].run(random_inputs(pair[0], 2, np.random.default_rng()))


def test_a_machine_without_a_gpu_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_gpu", lambda: None)
    with pytest.raises(EngineError, match="run on an NVIDIA GPU, and none was found"):
        StandIn()
    with pytest.raises(UsageError, match="no provider 'native-cuda'"):
        TensorRtBackend("native-cuda")


def test_options_choose_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRtBackend, "_open_device", lambda _self: StandInGpu())
    for name, wanted in (("native-tensorrt", "tensorrt"), ("native-rtx", "rtx")):
        chosen = RestoreOptions(provider=name, batch=3).open_backend()
        assert isinstance(chosen, TensorRtBackend)
        assert (chosen.provider, chosen._host.library, chosen._batch) == (name, wanted, 3)
        for unfit in ({"gpu_memory_bytes": 1 << 30}, {"cuda_graphs": True}, {"residency": "mapped"}):
            with pytest.raises(UsageError):
                RestoreOptions(provider=name, **unfit).open_backend()


def test_memories_count_the_peak_and_use_buffers_again() -> None:
    memories = Memories(StandInGpu())
    first, second = memories.take(100), memories.take(100)
    memories.take(50, pinned=True)
    assert (memories.used_bytes, memories.peak_bytes) == (200, 200)
    memories.let_go(first)
    assert memories.take(100) is first
    memories.let_go(first)
    memories.let_go(second)
    memories.trim()
    assert (memories.used_bytes, memories.peak_bytes) == (0, 200)
