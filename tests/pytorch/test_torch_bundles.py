"""``export --target torch``: the networks as they are loaded again, against the ONNX bundle of the same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from cuda_graph_standin import stand_in_for_cuda_graphs
from export_support import make_nano
from places import GOLDEN

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db, relative_l2
from livemoments.errors import EngineError, ParityError, ResourceError, UsageError
from livemoments.export import torch_stages
from livemoments.export.pipeline import export_bundle
from livemoments.pytorch.backend import TorchArray, TorchBackend, TorchEngine
from livemoments.pytorch.options import TorchOptions
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.runtime.backends.base import Backend, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import restore
from livemoments.stage_inputs import draw_input
from livemoments.types import Size, Stage
from livemoments.validate.ladder.compare import compare
from livemoments.validate.recording.golden_format import GoldenRecording

TILE = Size(128, 128)
LIMITS = {"cpu": 1e-5, "cpu+bf16": 6e-2}
"""Relative L2 of a stage's worst output against onnxruntime's in float32."""
OWN_LIMITS = {"cpu+compile": 1e-5, "cpu+math": 1e-5, "cpu+int8-linears": 6e-2, "cpu+fp8-linears": 0.15}
"""The same against the float32 networks of the same bundle."""
EXACT_DB = 75.0
"""PSNR of a photo from float32 networks against onnxruntime's: a few pixels round to the next level."""


@pytest.fixture(name="onnx", scope="module")
def fixture_onnx(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, verify_hashes=False)


@pytest.fixture(name="networks", scope="module")
def fixture_networks(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same checkpoint and tile as the ONNX bundle's, and another one before it."""
    place = tmp_path_factory.mktemp("torch") / "bundle"
    return export(tiny_checkpoint, place, tiles=(Size(64, 96), TILE), overlap=16, steps=(3, 6))


@pytest.fixture(name="nano", scope="module")
def fixture_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nano(tmp_path_factory.mktemp("nano") / "checkpoint")


def export(checkpoint: Path, output: Path, **options: Any) -> Bundle:
    stages = [stage for stage in Stage if stage is not Stage.FLOW]
    usual: dict[str, Any] = {"tiles": (Size(64, 64),), "overlap": 16, "steps": (3,), "verify": "none", "stages": stages}
    return export_bundle(checkpoint, output, target="torch", **(usual | options))


@pytest.fixture(name="small", scope="module")
def fixture_small(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(nano, tmp_path_factory.mktemp("small") / "bundle")


def distances(
    found: tuple[Bundle, Backend], wanted: tuple[Bundle, Backend], size: Size, batch: int
) -> dict[str, float]:
    """Of every stage of the first bundle: the worst output's relative error against the second, on fresh inputs."""
    rng, errors = np.random.default_rng(), {}
    for name in found[0].manifest.stages:
        stage = Stage(name)
        engines = [backend.open(bundle, stage, size) for bundle, backend in (found, wanted)]
        with engines[0] as ours, engines[1] as theirs:
            inputs = {spec.name: draw_input(spec, rng, batch=batch, size=size, point=2) for spec in ours.inputs}
            right, kept = theirs.run(theirs.cast(inputs)), ours.run(ours.cast(inputs), keep=[ours.outputs[0].name])
            assert isinstance(kept[ours.outputs[0].name], TorchArray)
            errors[name] = max(relative_l2(to_host(kept[key]), to_host(value)) for key, value in right.items())
    return errors


@pytest.mark.parametrize("provider", list(LIMITS))
def test_every_stage_computes_what_the_graphs_do(networks: Bundle, onnx: Bundle, provider: str) -> None:
    errors = distances((networks, TorchBackend(provider)), (onnx, OrtBackend()), TILE, batch=2)
    assert len(errors) == 5
    assert max(errors.values()) < LIMITS[provider], errors


@pytest.mark.parametrize("provider", list(OWN_LIMITS))
def test_words_change_how_it_is_computed_and_little_of_what(small: Bundle, provider: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    backend = TorchBackend(provider, compile_backend="aot_eager")
    errors = distances((small, backend), (small, TorchBackend()), Size(64, 64), batch=2)
    assert max(errors.values()) < OWN_LIMITS[provider], errors
    if "linears" in provider:  # the transformers' products, and nothing else
        assert {name for name, value in errors.items() if value > LIMITS["cpu"]} == {"reference", "restoration"}
    assert bool(torch._dynamo.utils.counters["stats"]["unique_graphs"]) == ("compile" in provider)


def test_weights_are_stored_once_for_all_sizes(networks: Bundle) -> None:
    for name, entry in networks.manifest.stages.items():
        assert [graph.path for graph in entry.graphs] == [f"{name}/96x64.json", f"{name}/128x128.json"]
        assert {graph.weights for graph in entry.graphs} == {(f"{name}/weights.safetensors",)}
    Bundle.open(networks.path)  # every hash is right
    assert (networks.manifest.target, networks.manifest.precision) == ("torch", "fp32")


def pictures(rng: np.random.Generator) -> tuple[Photo, Photo]:
    """A photo of 176 x 128 pixels with structure in it, and a frame of half its size."""
    y, x = np.mgrid[0:128, 0:176]
    waves = [np.sin(x / rng.uniform(4, 12) + phase) * np.cos(y / rng.uniform(4, 12)) for phase in range(3)]
    photo = np.clip(np.stack(waves, -1) * 60 + 128, 0, 255).astype(np.uint8)
    return Photo(photo), Photo(np.ascontiguousarray(photo[::2, ::2]))


@pytest.mark.parametrize("policy", ["frozen", "phase-split"])
def test_a_photo_is_the_same_from_either_bundle(networks: Bundle, onnx: Bundle, policy: str) -> None:
    photo, frame = pictures(np.random.default_rng())
    options: dict[str, Any] = {"seed": 1, "flow": "dis", "reference": policy, "tile": TILE, "steps": 3}
    ours, theirs = (restore(bundle, frame, photo, **options) for bundle in (networks, onnx))
    assert psnr_db(ours.image.astype(float), theirs.image.astype(float), peak=255) > EXACT_DB
    assert (ours.metadata["provider"], theirs.metadata["provider"]) == ("torch:cpu", "onnxruntime:cpu")
    assert len(ours.plan.tiles) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_the_gate_measures_every_stage_flow_among_them(
    nano: Path, tmp_path: Path, precision: str, limit: float
) -> None:
    bundle = export(nano, tmp_path / "bundle", precision=precision, verify="full", stages=None)
    for name, entry in bundle.manifest.stages.items():
        (parity,) = entry.parity
        assert parity.rel_l2 <= parity.limit == (1e-4 if name == "flow" else limit)
        assert parity.points == ((0, 1, 2) if name in ("reference", "restoration") else ())
    assert bundle.stage(Stage.FLOW).precision == "fp32"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 60.0), ("fp16", 45.0)])
def test_the_golden_photo_from_networks(tiny_checkpoint: Path, tmp_path: Path, precision: str, least_db: float) -> None:
    """All six stages, RAFT among them, against upstream's own recording: every intermediate within its limit."""
    recording = GoldenRecording(GOLDEN)
    settings = recording.meta.settings
    bundle = export(
        tiny_checkpoint,
        tmp_path / "bundle",
        precision=precision,
        tiles=(Size.parse(settings.tile),),
        overlap=settings.overlap,
        steps=(settings.steps,),
        stages=None,
    )
    rungs = compare(bundle, recording, levels=("network", "step", "tile", "photo"), backend=TorchBackend())
    assert [rung for rung in rungs if rung.status not in ("pass", "info")] == []
    photo = next(rung for rung in rungs if rung.name == "result")
    assert photo.psnr_db is not None
    assert photo.psnr_db >= least_db


def test_the_gate_refuses_what_is_not_the_reference(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded again, not as it was in memory: a description that lost something is found."""
    describe = torch_stages.describe

    def forgetful(module: torch.nn.Module) -> dict[str, Any]:
        (name, part), *_ = describe(module).items()
        blocks = [msgspec.structs.replace(block, norm1=block.norm1[::-1]) for block in part.blocks]
        return {name: msgspec.structs.replace(part, blocks=tuple(blocks))}

    monkeypatch.setattr(torch_stages, "describe", forgetful)
    with pytest.raises(ParityError, match="stage 'reference'"):
        export(nano, tmp_path / "bundle", stages=[Stage.REFERENCE], verify="sampled")
    assert not list(tmp_path.iterdir())


def test_what_is_kept_of_a_cuda_graph_outlives_its_next_run(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_cuda_graphs(monkeypatch)
    monkeypatch.setattr(TorchOptions, "check", lambda self: None)
    backend = TorchBackend("cpu+graphs")
    size = Size(64, 64)
    assert max(distances((small, backend), (small, TorchBackend()), size, batch=2).values()) < LIMITS["cpu"]
    rng = np.random.default_rng()
    with backend.open(small, Stage.MOTION, size) as engine:
        flows = [draw_input(engine.inputs[0], rng, batch=batch, size=size) for batch in (1, 1, 2)]
        first, *_ = (engine.run({"flow": flow}, keep=["motion_bias"])["motion_bias"] for flow in flows)
        again = engine.run({"flow": flows[0]})["motion_bias"]
    np.testing.assert_array_equal(to_host(first), again)


def test_a_damaged_network_is_named(networks: Bundle, tmp_path: Path) -> None:
    graph = networks.graph(Stage.MOTION, TILE)
    written = json.loads((networks.path / graph.path).read_text())

    def engine(change: dict[str, Any]) -> TorchEngine:
        (tmp_path / "motion").mkdir(exist_ok=True)
        (tmp_path / graph.path).write_text(json.dumps(written | change))
        (tmp_path / graph.weights[0]).write_bytes((networks.path / graph.weights[0]).read_bytes())
        return TorchBackend().open_files(tmp_path, Stage.MOTION, graph)

    engine({}).close()
    wider = written["motion"] | {"widths": [8, 8, 8, 32]}
    for change, words in (
        ({"motion": wider}, "has the shape"),
        ({"stored_as": {}}, "no weights for 'point_proj"),
        ({"motion": None}, "no part of it is the stage 'motion'"),
        ({"dtype": "int4"}, "weights of type 'int4'"),
        ({"more": 1}, "not a network of this stage"),
    ):
        with pytest.raises(EngineError, match=words) as caught:
            engine(change)
        assert caught.value.fix
    engine({}).close()
    (tmp_path / graph.weights[0]).write_bytes(b"no tensors")
    with pytest.raises(EngineError, match="cannot be read"):
        TorchBackend().open_files(tmp_path, Stage.MOTION, graph)


def test_memory_that_runs_out_is_told_as_such(networks: Bundle) -> None:
    with TorchBackend().open(networks, Stage.VAE_DECODER, TILE) as engine:
        inputs = {spec.name: draw_input(spec, np.random.default_rng(), size=TILE) for spec in engine.inputs}
        for error, kind in (
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), ResourceError),
            (RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 9 bytes"), ResourceError),
            (RuntimeError("No available kernel. Aborting execution."), EngineError),
        ):

            def fail(*tensors: torch.Tensor, error: Exception = error) -> None:
                raise error

            engine._module = fail  # type: ignore[assignment]
            with pytest.raises(kind, match="stage 'vae_decoder' failed") as caught:
                engine.run(inputs)
            assert getattr(caught.value, "of_memory", False) == (kind is ResourceError)
        engine._module = torch.nn.Identity()


def test_other_rooms_refuse_networks_with_one_line(networks: Bundle, tmp_path: Path) -> None:
    assert RestoreOptions(provider="cpu+bf16").open_backend(networks).provider == "cpu+bf16"
    with pytest.raises(EngineError, match="PyTorch networks, which onnxruntime does not run"):
        OrtBackend().open(networks, Stage.MOTION, TILE)
    with pytest.raises(UsageError, match="is made for torch"):
        quantize_bundle(networks, tmp_path / "out", recipe="int8-dynamic")
