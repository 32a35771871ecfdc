"""The published sizes are traced at full size: on the meta device, from a checkpoint whose tensors are holes."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from livemoments.export.plan import Planner
from livemoments.export.stages import PER_BLOCK
from livemoments.export.to_onnx import _to_onnx
from livemoments.reference import random_checkpoint
from livemoments.reference.checkpoint import read_configs, read_prompt
from livemoments.reference.layout import locate
from livemoments.schedule import build_schedule
from livemoments.store.safetensors_file import ITEM_BYTES
from livemoments.types import Size, Stage

pytestmark = pytest.mark.slow

TOKENS = 154
"""Of the prompt (SIZES has 154; a file with 333 is traced alike)."""


def write_hollow(folder: Path, stem: str, shapes: dict[str, tuple[int, ...]], dtype: str, *_: Any) -> None:
    """A safetensors file of zeros that takes no disk: its tensors are a hole."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {
            "dtype": {"float16": "F16", "float32": "F32"}[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    with (folder / f"{stem}.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    folder = tmp_path_factory.mktemp("full") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_checkpoint, "write_sharded", write_hollow)
        patch.setattr(random_checkpoint, "_check_space", lambda *_: None)
        random_checkpoint.make_checkpoint(folder, size="sd3-medium", dtype="float16")
    files = locate(folder)
    configs = read_configs(files)
    prompt = read_prompt(files, configs.transformer)
    assert (configs.transformer.num_layers, configs.transformer.dim, prompt.tokens.shape[1]) == (24, 1536, TOKENS)
    return Planner(files, configs, prompt, build_schedule((6,)), torch.float16, PER_BLOCK)


def traced(planner: Planner, stage: Stage, side: int) -> list[tuple[Any, list[Any]]]:
    """Batch axis and the others of every output."""
    model = _to_onnx(planner.graph(stage, Size(side, side)))
    return [(output.shape[0], list(output.shape)[1:]) for output in model.graph.outputs]


@pytest.mark.parametrize("side", [1024, 1072])
def test_encoder(planner: Planner, side: int) -> None:
    for batch, rest in traced(planner, Stage.VAE_ENCODER, side):
        assert not isinstance(batch, int)
        assert rest == [16, side // 8, side // 8]


@pytest.mark.parametrize("side", [1024, 1072, 2048, 3072])
def test_decoder(planner: Planner, side: int) -> None:
    ((batch, rest),) = traced(planner, Stage.VAE_DECODER, side)
    assert not isinstance(batch, int)
    assert rest == [3, side, side]


@pytest.mark.parametrize("side", [1024, 1072])
def test_motion(planner: Planner, side: int) -> None:
    ((blocks, (batch, *rest)),) = traced(planner, Stage.MOTION, side)
    assert blocks == 24
    assert not isinstance(batch, int)
    assert rest == [(side // 16) ** 2, 1536]


@pytest.mark.parametrize("side", [1024, 1072])
def test_reference(planner: Planner, side: int) -> None:
    found = traced(planner, Stage.REFERENCE, side)
    assert len(found) == 2 * 24
    for batch, rest in found:
        assert not isinstance(batch, int)
        assert rest == [(side // 16) ** 2 + TOKENS, 1536]


@pytest.mark.parametrize("side", [1024, 1072])
def test_restoration(planner: Planner, side: int) -> None:
    ((batch, rest),) = traced(planner, Stage.RESTORATION, side)
    assert not isinstance(batch, int)
    assert rest == [16, side // 8, side // 8]
