"""RAFT through torch.onnx: any size, ranks that every target takes, onnxruntime against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from raft_support import random_images, random_raft, relative_error
from torch import Tensor

from livemoments.reference.raft import RAFT

ONNX_LIMIT = 1e-5
"""Relative L2 of onnxruntime against PyTorch; 2e-6 was measured."""
MAX_RANK = 5
"""The deepest tensors that Core ML takes."""


def export(raft: RAFT, path: Path, *, opset: int, dynamic_shapes: object) -> onnx.ModelProto:
    example = random_images(2, 96, 80, seed=5)  # a batch of one would be frozen
    program = torch.onnx.export(
        raft,
        example,
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=(dynamic_shapes, dynamic_shapes),
        input_names=["image1", "image2"],
        output_names=["flow"],
        verbose=False,
    )
    assert program is not None
    program.save(path)
    return onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)


def ranks(model: onnx.ModelProto) -> dict[str, int]:
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values}


def run_onnx(path: Path, image1: Tensor, image2: Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"image1": image1.numpy(), "image2": image2.numpy()})[0]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_exports_with_any_batch_height_and_width(opset: int, tmp_path: Path) -> None:
    raft = random_raft(iterations=2)
    path = tmp_path / "flow.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    height, width = (8 * torch.export.Dim(name, min=8, max=1024) for name in ("rows", "columns"))
    model = export(raft, path, opset=opset, dynamic_shapes={0: batch, 2: height, 3: width})

    known = ranks(model)
    assert {output for node in model.graph.node for output in node.output if output} <= known.keys()
    assert max(known.values()) <= MAX_RANK
    for size in ((2, 96, 80), (3, 136, 64), (1, 64, 64), (1, 128, 200)):
        images = random_images(*size)
        assert relative_error(run_onnx(path, *images), raft(*images)) <= ONNX_LIMIT


@pytest.mark.slow
def test_exports_with_a_fixed_size(tmp_path: Path) -> None:
    raft = random_raft(iterations=2)
    path = tmp_path / "flow.onnx"
    model = export(raft, path, opset=20, dynamic_shapes={0: torch.export.Dim("batch", min=1, max=64)})
    assert max(ranks(model).values()) <= MAX_RANK
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim[1:]] == [2, 96, 80]
    for batch in (1, 2, 3):
        images = random_images(batch, 96, 80)
        assert relative_error(run_onnx(path, *images), raft(*images)) <= ONNX_LIMIT
