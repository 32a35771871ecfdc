"""Optical flow for images of any size: padding as upstream's, RAFT, cropping; RAFT from a published state dict; and DIS
for checkpoints that bring no RAFT.

Source: UPSTREAM "One photo" step 1 and "One tile" step 1: images scaled to [-1, 1], 20 iterations, padded to a multiple
of 8 as RAFT's padding helper does by default (replicated edges, the odd pixel at the right and the bottom).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.dis import dis_flow_between
from livemoments.errors import UsageError
from livemoments.reference.raft import CELL_PX, ITERATIONS, MIN_SIDE_PX, RAFT, ContextNorm, Correlation
from livemoments.reference.stored import check_keys
from livemoments.reference.weights import check_finite

_PREFIX = "module."
"""Published checkpoints were saved from a data-parallel wrapper, which puts this before every key."""


@dataclass(frozen=True)
class Crop:
    """Takes the padding off again.

    Attributes:
        top: rows of padding above.
        left: columns of padding at the left.
        height: rows of the image inside.
        width: columns of the image inside.
    """

    top: int
    left: int
    height: int
    width: int

    def __call__(self, padded: Tensor) -> Tensor:
        """(..., H padded, W padded) to (..., H, W)."""
        return padded[..., self.top : self.top + self.height, self.left : self.left + self.width]


def pad_to_multiple(image: Tensor, multiple: int = CELL_PX) -> tuple[Tensor, Crop]:
    """Pads height and width to multiples by replicating the edges, half on each side, the odd pixel right and bottom.

    Args:
        image: (B, C, H, W).
        multiple: both sides become multiples of this, pixels.

    Returns:
        The padded image, and the crop that undoes the padding.
    """
    height, width = image.shape[-2:]
    rows, columns = -height % multiple, -width % multiple
    top, left = rows // 2, columns // 2
    crop = Crop(top, left, height, width)
    if rows == 0 and columns == 0:
        return image, crop
    return F.pad(image, (left, columns - left, top, rows - top), mode="replicate"), crop


class Dis:
    """OpenCV's DIS in RAFT's place: the runtime's own code, so that equal images have equal flow on both sides."""

    def __call__(self, image1: Tensor, image2: Tensor) -> Tensor:
        """Flow (B, 2, H, W), float32, pixels, on the images' device, from (B, 3, H, W) in [-1, 1]; computed on the CPU.

        Raises:
            UsageError: images of different shapes.
        """
        flow = dis_flow_between(*(image.detach().float().cpu().numpy() for image in (image1, image2)))
        return torch.from_numpy(flow).to(image1.device)


def estimate_flow(raft: RAFT | Dis, image1: Tensor, image2: Tensor) -> Tensor:
    """Estimates the flow between two images of any size from 64 px up, without gradients.

    Args:
        raft: the network, or DIS, which takes images of any size.
        image1: (B, 3, H, W) in [-1, 1], on the network's device.
        image2: the same shape.

    Returns:
        flow (B, 2, H, W), float32: x and y, pixels, from ``image1`` to ``image2``.

    Raises:
        UsageError: images of different shapes, or smaller than RAFT's 64 px.
    """
    if image1.shape != image2.shape:
        raise UsageError(f"flow needs two images of one shape, not {tuple(image1.shape)} and {tuple(image2.shape)}")
    if isinstance(raft, Dis):
        return raft(image1, image2)
    if min(image1.shape[-2:]) < MIN_SIDE_PX:  # before padding, so that the message names the caller's size
        height, width = image1.shape[-2:]
        raise UsageError(
            f"flow needs images of at least {MIN_SIDE_PX} x {MIN_SIDE_PX} px, not {width} x {height} px",
            fix="use larger images",
        )
    padded1, crop = pad_to_multiple(image1)
    padded2, _ = pad_to_multiple(image2)
    with torch.no_grad():
        return crop(raft(padded1, padded2))


def raft_from_state(
    state: Mapping[str, Tensor],
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    iterations: int = ITERATIONS,
    correlation: Correlation = "all-pairs",
    context_norm: ContextNorm = "image",
) -> RAFT:
    """Builds RAFT from a state dict with princeton-vl's key names, with or without the ``module.`` prefix.

    Args:
        state: the checkpoint's tensors, of any floating type. Those of ``dtype`` already are used without a copy.
        path: the file that the weights came from, for messages.
        dtype: type of the weights; the correlation and the coordinates stay in float32.
        iterations: recurrent updates.
        correlation: see :class:`livemoments.reference.raft.RAFT`.
        context_norm: see :class:`livemoments.reference.raft.RAFT`.

    Returns:
        The network in eval mode, on the CPU, without gradients.

    Raises:
        CheckpointError: missing, extra and misshapen keys (all in one), or weights that are not finite in ``dtype``.
        UsageError: an argument that cannot be used.
    """
    plain = {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()}
    with torch.device("meta"):
        raft = RAFT(iterations, correlation, context_norm)
    expected = {key: tuple(tensor.shape) for key, tensor in raft.state_dict().items()}
    check_keys(path, expected, {key: tuple(tensor.shape) for key, tensor in plain.items()})

    weights = {
        key: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype) for key, tensor in plain.items()
    }
    check_finite(path, weights)
    raft.load_state_dict(weights, strict=True, assign=True)
    return raft.eval().requires_grad_(False)
