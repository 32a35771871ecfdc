"""Random RAFTs and images for its tests, and the error they are compared by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.reference.raft import RAFT

PATH = Path("raft-sintel.pth")


def relative_error(value: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    value, expected = torch.as_tensor(value).double(), torch.as_tensor(expected).double()
    assert value.shape == expected.shape
    return float((value - expected).norm() / expected.norm())


def random_raft(**options: object) -> RAFT:
    torch.manual_seed(3)
    return RAFT(**options).eval().requires_grad_(False)  # type: ignore[arg-type]


def random_images(batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, size=(height + 4, width + 4), mode="bicubic").clamp(-1, 1)
    return smooth[..., 1:-3, 3:-1].contiguous(), smooth[..., 2:-2, 2:-2].contiguous()
