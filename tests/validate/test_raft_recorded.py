"""RAFT against upstream's recorded flows, where the recording is present."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from places import UPSTREAM_GOLDEN
from raft_support import PATH, relative_error
from torch import Tensor

from livemoments.reference import raft as module
from livemoments.reference.flow import estimate_flow, raft_from_state

UPSTREAM_GOLDEN_LIMIT = 1e-5
"""Relative L2 against upstream's recorded flow; 3e-7 was measured."""


@pytest.fixture(scope="module")
def golden_state() -> dict[str, Tensor]:
    path = UPSTREAM_GOLDEN / "raft-sintel.pth"
    if not path.is_file():
        pytest.skip(f"upstream's recording is not on this machine: there is no {path}")
    return torch.load(path, weights_only=True)


def golden_image(folder: str) -> Tensor:
    (path,) = (UPSTREAM_GOLDEN / "images" / folder).glob("*.png")
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels * 2 - 1).permute(2, 0, 1)[None]


@pytest.mark.parametrize("correlation", ["all-pairs", "on-demand"])
def test_recorded_photo_flow_is_reproduced(golden_state: dict[str, Tensor], correlation: module.Correlation) -> None:
    raft = raft_from_state(golden_state, PATH, correlation=correlation)
    flow = estimate_flow(raft, golden_image("lr"), golden_image("ref_lr"))
    with np.load(UPSTREAM_GOLDEN / "expected.npz") as expected:
        assert relative_error(flow, expected["photo.flow_lr"]) <= UPSTREAM_GOLDEN_LIMIT


def test_recorded_tile_flow_is_reproduced(golden_state: dict[str, Tensor]) -> None:
    """Direction and tile geometry: reference tile to frame tile, cut from the recorded upscaled frames."""
    raft = raft_from_state(golden_state, PATH)
    with np.load(UPSTREAM_GOLDEN / "expected.npz") as expected:
        tile_px = expected["tile0.flow"].shape[-1]
        rows, columns = (int(n) for n in expected["lq_padded_shape"][-2:])
        frames = []
        for name in ("photo.lq_up", "photo.ref_lq_up"):
            frame = torch.from_numpy(expected[name])
            pad = (0, columns - frame.shape[-1], 0, rows - frame.shape[-2])
            frames.append((F.pad(frame, pad, mode="reflect") * 2 - 1).clamp(-1, 1))
        tile = 4  # one that touches no corner
        corners = (expected["tile_indices"][tile], expected["ref_patch_coords"][tile])
        frame, reference = (
            image[..., y : y + tile_px, x : x + tile_px] for image, (y, x) in zip(frames, corners, strict=True)
        )
        flow = estimate_flow(raft, reference, frame)
        assert relative_error(flow, expected[f"tile{tile}.flow"]) <= UPSTREAM_GOLDEN_LIMIT


def test_stored_statistics_are_another_flow(golden_state: dict[str, Tensor]) -> None:
    """Guards the finding that upstream runs RAFT in training mode: eval-mode batch norm misses the recording."""
    raft = raft_from_state(golden_state, PATH, context_norm="running")
    flow = estimate_flow(raft, golden_image("lr"), golden_image("ref_lr"))
    with np.load(UPSTREAM_GOLDEN / "expected.npz") as expected:
        assert relative_error(flow, expected["photo.flow_lr"]) > 0.1
