"""Whole exports: the manifest, determinism, planted faults, refusals, and that a failed export leaves nothing."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_support import NANO, make_nano
from safetensors.torch import load_file, save_file

from livemoments.bundle import Bundle
from livemoments.errors import (
    CheckpointError,
    LiveMomentsError,
    MissingExtraError,
    OutputError,
    ParityError,
    ResourceError,
    UsageError,
)
from livemoments.export.options import ExportOptions
from livemoments.export.pipeline import export_bundle
from livemoments.types import Size, Stage

TILES = (Size(height=64, width=64), Size(height=64, width=80))
MOTION = {"tiles": TILES[:1], "overlap": 16, "stages": [Stage.MOTION]}
"""The quickest stage."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nano(tmp_path_factory.mktemp("nano") / "checkpoint")


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_bundle(
        checkpoint,
        tmp_path_factory.mktemp("bundle") / "two",
        tiles=TILES,
        overlap=16,
        stages=[Stage.REFERENCE, Stage.MOTION],
        precision="fp16",
        reference_policy="every-2",
    )


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "damaged")


def test_manifest(bundle: Bundle, checkpoint: Path) -> None:
    found = Bundle.open(bundle.path).manifest
    assert list(found.stages) == sorted(["motion", "reference"])
    assert found.tiles == ("64x64", "80x64")
    assert (found.target, found.precision, found.overlap) == ("onnx", "fp16", 16)
    assert (found.reference_policy, found.kv_layout) == ("every-2", ExportOptions().kv_layout)
    assert found.model.num_blocks == NANO.num_layers
    assert found.model.text_tokens == NANO.prompt_tokens
    assert found.model.vae_scale == 2
    assert found.source.name == "checkpoint"
    assert "transformer_ref/config.json" in found.source.files
    assert {"torch", "onnx", "onnxruntime", "python"} <= set(found.toolchain)
    reference = found.stages["reference"]
    assert [graph.size for graph in reference.graphs] == ["64x64", "80x64"]
    assert {graph.weights for graph in reference.graphs} == {("reference/weights.bin",)}
    assert reference.graphs[0].inputs[0].shape == ("batch", 16, 32, 32)
    assert reference.graphs[0].inputs[0].dtype == "float16"
    assert found.stages["motion"].graphs[0].inputs[0].dtype == "float32"
    assert reference.parameters < reference.parameters_before
    assert [parity.size for parity in reference.parity] == ["64x64", "80x64"]
    for parity in reference.parity:
        assert 0 < parity.rel_l2 <= parity.limit
        assert parity.points == tuple(range(len(found.schedule.points)))
    assert set(found.files) >= {"reference/64x64.onnx", "reference/80x64.onnx", "reference/weights.bin"}


def test_two_exports_are_equal_byte_for_byte(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_bundle(checkpoint, tmp_path / name, tiles=TILES[1:], overlap=8, stages=[Stage.REFERENCE], verify="none")
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize(("verify", "points"), [("sampled", [0, 8]), ("finite", None), ("none", None)])
def test_verification_says_what_was_compared(
    checkpoint: Path, tmp_path: Path, verify: Any, points: list[int] | None
) -> None:
    stage = Stage.REFERENCE if points else Stage.MOTION
    made = export_bundle(checkpoint, tmp_path / "b", tiles=TILES[:1], overlap=16, stages=[stage], verify=verify)
    assert [list(p.points) for p in made.stage(stage).parity] == ([] if points is None else [points])


@pytest.mark.parametrize(
    ("component", "key"),
    [
        ("transformer_ref", "transformer_blocks.0.attn.to_k.weight"),  # stored in the graph
        ("transformer_ref", "transformer_blocks.1.norm1.linear.bias"),  # folded
        ("transformer", "transformer_blocks.1.attn.processor.point_proj.weight"),
    ],
)
def test_nan_weight_is_named_and_nothing_is_left(damaged: Path, tmp_path: Path, component: str, key: str) -> None:
    file = next((damaged / "livemoments" / component).glob("*.safetensors"))
    state = load_file(file)
    state[key].view(-1)[3] = float("nan")
    save_file(state, file)
    stage = Stage.REFERENCE if component == "transformer_ref" else Stage.MOTION
    with pytest.raises(CheckpointError) as caught:
        export_bundle(damaged, tmp_path / "b", tiles=TILES[:1], overlap=16, stages=[stage])
    assert key in caught.value.message
    assert caught.value.path == str(file)
    assert left_behind(tmp_path) == []


def test_extra_key_is_named(damaged: Path, tmp_path: Path) -> None:
    file = next((damaged / "livemoments" / "transformer_ref").glob("*.safetensors"))
    save_file(load_file(file) | {"surprise": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match="unexpected: surprise"):
        export_bundle(damaged, tmp_path / "b", tiles=TILES[:1], overlap=16, stages=[Stage.REFERENCE])
    assert left_behind(tmp_path) == []


def test_gate_catches_a_changed_weight(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from livemoments.export.to_onnx import WeightsFile

    add = WeightsFile.add

    def spoiled(self: WeightsFile, tensor: Any, name: str) -> Any:
        import onnx_ir as ir

        if name == "blocks.0.2.bias":
            tensor = ir.tensor(tensor.numpy() + np.float32(0.01), name=name)
        return add(self, tensor, name)

    monkeypatch.setattr(WeightsFile, "add", spoiled)
    with pytest.raises(ParityError, match="stage 'motion' \\(64x64\\): output 'motion_bias'"):
        export_bundle(checkpoint, tmp_path / "b", **MOTION)
    assert left_behind(tmp_path) == []


def test_gate_catches_a_shifted_position_window(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from livemoments.export import plan

    crop = plan.crop_position
    monkeypatch.setattr(plan, "crop_position", lambda table, grid: crop(table, grid).roll(1, dims=1))
    with pytest.raises(ParityError, match="reference"):
        export_bundle(
            checkpoint, tmp_path / "b", tiles=TILES[:1], overlap=16, stages=[Stage.REFERENCE], verify="sampled"
        )
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
        (MemoryError(), ResourceError),
    ],
    ids=["interrupt", "disk full", "no memory"],
)
def test_interrupted_export_leaves_nothing(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    expected: type[BaseException],
) -> None:
    from livemoments.export import to_onnx

    save = to_onnx.save

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        raise raised

    monkeypatch.setattr(to_onnx, "save", interrupted)
    with pytest.raises(expected):
        export_bundle(checkpoint, tmp_path / "b", **MOTION)
    assert left_behind(tmp_path) == []


def test_existing_bundle_needs_overwrite(checkpoint: Path, tmp_path: Path) -> None:
    first = export_bundle(checkpoint, tmp_path / "b", verify="none", **MOTION)
    with pytest.raises(OutputError, match="exists"):
        export_bundle(checkpoint, tmp_path / "b", verify="none", **MOTION)
    again = export_bundle(checkpoint, tmp_path / "b", verify="none", overwrite=True, **MOTION)
    assert again.manifest == first.manifest
    assert left_behind(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tiles": (Size(66, 64),)}, "66"),
        ({"tiles": (Size(64, 132),)}, "132x64"),
        ({"tiles": (Size(60, 64),)}, "64x60"),
        ({"tiles": ()}, "no tile size"),
        ({"overlap": 64}, "overlap of 64"),
        ({"overlap": -1}, "overlap of -1"),
        ({"target": "openvino"}, "no target 'openvino'"),
        ({"precision": "int8"}, "no precision 'int8'"),
        ({"verify": "perhaps"}, "no verification"),
        ({"kv_layout": "heap"}, "'heap'"),
        ({"stages": []}, "no stage"),
        ({"steps": []}, "no step count"),
        ({"steps": [0]}, "0 sampling steps"),
        ({"steps": [78]}, "78 sampling steps"),
        ({"reference_policy": "often"}, "'often'"),
    ],
)
def test_arguments_that_cannot_be_used(
    checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    given = {"tiles": TILES[:1], "overlap": 16, **arguments}
    with pytest.raises(UsageError, match=message):
        export_bundle(checkpoint, tmp_path / "b", **given)
    assert left_behind(tmp_path) == []


def test_missing_extra_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError) as caught:
        export_bundle(checkpoint, tmp_path / "b", **MOTION)
    assert caught.value.extra == "export"
    assert "onnxscript" in caught.value.message


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(LiveMomentsError, match="no such checkpoint"):
        export_bundle(tmp_path / "nowhere", tmp_path / "b", **MOTION)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_whole_bundle_is_within_its_limits(tiny_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    made = export_bundle(
        tiny_checkpoint, tmp_path / "b", tiles=(Size(128, 128),), overlap=16, precision=precision, verify="sampled"
    )
    assert set(made.manifest.stages) == set(Stage)
    for name, entry in made.manifest.stages.items():
        assert entry.parity, name
        for parity in entry.parity:
            assert parity.rel_l2 <= parity.limit
    assert made.stage("flow").precision == "fp32"
    assert made.stage("flow").graphs[0].size == "any"
