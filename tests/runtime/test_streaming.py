"""Transformers a block at a time, and with their weights left in their files: the same numbers with less memory."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from fake_bundle import make_fake_bundle
from restore_images import FRAME, KEY_FRAME, PHOTO

from livemoments.bundle import Bundle
from livemoments.chains import streamed
from livemoments.chains.blocks import block_cuts, places
from livemoments.chains.chain import Segment, cut_at_blocks, wires_of
from livemoments.chains.streamed import StreamedBackend
from livemoments.checkpoints import trained_bundle
from livemoments.errors import MissingExtraError, UsageError
from livemoments.runtime import restore
from livemoments.runtime.backends.base import Array
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.options import RestoreOptions
from livemoments.types import TRANSFORMER_STAGES, Stage

ROUNDING = 1e-4
"""Relative L2 of float32 products summed in another order, through all blocks."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(trained_bundle(), verify_hashes=False)


def inputs_of(bundle: Bundle, stage: Stage, batch: int) -> dict[str, Array]:
    rng = np.random.default_rng()
    inputs: dict[str, Array] = {"step": np.array(0, np.int64)}
    for spec in bundle.graph(stage, bundle.tile_sizes[0]).inputs:
        if spec.name != "step":
            shape = [batch if axis == "batch" else int(axis) for axis in spec.shape]
            inputs[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    return inputs


def run(backend: OrtBackend, bundle: Bundle, stage: Stage, inputs: Mapping[str, Array]) -> dict[str, Array]:
    with backend.open(bundle, stage, bundle.tile_sizes[0]) as engine:
        return engine.run(inputs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("stage", TRANSFORMER_STAGES)
def test_a_chain_gives_the_graphs_numbers(bundle: Bundle, stage: Stage, batch: int) -> None:
    inputs = inputs_of(bundle, stage, batch)
    whole = run(OrtBackend("cpu", 1), bundle, stage, inputs)
    for name, values in run(StreamedBackend("cpu", 1), bundle, stage, inputs).items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize("stage", TRANSFORMER_STAGES)
def test_mapped_weights_give_them_up_to_rounding(bundle: Bundle, stage: Stage) -> None:
    inputs = inputs_of(bundle, stage, 1)
    whole = run(OrtBackend("cpu", 1), bundle, stage, inputs)
    for name, values in run(OrtBackend("cpu", 1, mapped=True), bundle, stage, inputs).items():
        error = np.linalg.norm(np.subtract(values, whole[name])) / np.linalg.norm(np.asarray(whole[name]))
        assert error < ROUNDING


def test_one_block_is_loaded_at_a_time(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every session is gone before the next one is made, and no weight belongs to two blocks."""
    alive: list[str] = []
    most: list[int] = []

    class Session:
        def __init__(self, session: Any) -> None:
            self._session = session
            alive.append("block")
            most.append(len(alive))

        def run(self, *arguments: Any) -> Any:
            return self._session.run(*arguments)

        def __del__(self) -> None:
            alive.pop()

    opened = StreamedBackend._open_segment

    def open_segment(self: StreamedBackend, part: Segment, *where: Any) -> Any:
        return Session(opened(self, part, *where))

    monkeypatch.setattr(StreamedBackend, "_open_segment", open_segment)
    run(StreamedBackend("cpu", 1), bundle, Stage.RESTORATION, inputs_of(bundle, Stage.RESTORATION, 1))
    assert most == [1] * bundle.manifest.model.num_blocks
    assert not alive


def test_blocks_are_cut_apart(bundle: Bundle) -> None:
    for stage in TRANSFORMER_STAGES:
        path = bundle.path / bundle.graph(stage, bundle.tile_sizes[0]).path
        parts = [onnx.load_model_from_string(part.model).graph for part in cut_at_blocks(path)]
        assert len(parts) == bundle.manifest.model.num_blocks
        weights = [
            {tensor.name for tensor in part.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL}
            for part in parts
        ]
        assert len(set().union(*weights)) == sum(map(len, weights))
        assert sum(len(part.node) for part in parts) == len(onnx.load(path, load_external_data=False).graph.node)


def test_a_sum_goes_with_the_norm_behind_it() -> None:
    nodes = [
        ("Relu", ["x"], ["r"]),
        ("MatMul", ["r", "transformer_blocks.0.w"], ["a"]),
        ("Add", ["r", "a"], ["b"]),
        ("LayerNormalization", ["b", "transformer_blocks.1.n"], ["c"]),
        ("Add", ["b", "c"], ["y"]),
    ]
    given = {"x", "transformer_blocks.0.w", "transformer_blocks.1.n"}
    assert block_cuts(nodes) == [0, 3]
    assert places(nodes, given, [0, 3]) == [0, 0, 0, 1, 1]
    assert places(nodes, given, [0, 3], sums_to_readers=True) == [0, 0, 1, 1, 1]


def test_the_picture_is_the_same(bundle: Bundle) -> None:
    options = {"reference": "frozen", "flow": "dis", "pad_small": True, "steps": 1, "threads": 1}
    expected = restore(bundle, FRAME, PHOTO, KEY_FRAME, residency="phases", **options)
    found = restore(bundle, FRAME, PHOTO, KEY_FRAME, residency="streamed", kv_store="disk", **options)
    np.testing.assert_array_equal(found.image, expected.image)
    mapped = restore(bundle, FRAME, PHOTO, KEY_FRAME, residency="mapped", **options)
    assert np.abs(mapped.image.astype(int) - expected.image).max() <= 1


def test_a_graph_without_blocks_is_one_piece(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "bundle")
    path = bundle.path / bundle.graph(Stage.RESTORATION, bundle.tile_sizes[0]).path
    assert len(cut_at_blocks(path)) == 1
    assert block_cuts(wires_of(onnx.load(path, load_external_data=False).graph.node)) == [0]


def test_where_it_cannot_be_done(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="'cuda' has memory of its own"):
        OrtBackend("cuda", mapped=True)
    packages = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, target="coreml"))
    with pytest.raises(UsageError, match="target 'coreml' are not streamed"):
        RestoreOptions(residency="streamed").open_backend(packages)
    assert not RestoreOptions().can_stream(packages)


def test_without_onnx_it_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, streamed.__name__, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'livemoments-deploy\[plan\]'"):
        RestoreOptions(residency="streamed").open_backend(bundle)
