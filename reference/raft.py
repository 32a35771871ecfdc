"""RAFT, the optical flow network (large model), with princeton-vl's state-dict layout.

Source: Z. Teed and J. Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020: feature and
context encoders (section 3.1), correlation pyramid and lookup (3.2), recurrent updates and convex upsampling (3.3).
Three differences, the first two from LiveMoments' use of it: images come in [-1, 1] (RAFT's own division by 255 is
removed), the context encoder normalises by each image's own statistics
(:class:`~livemoments.reference.raft_layers.Encoder` says why), and only the last iteration is upsampled.

The code keeps to what exports: tensors of rank 5 or less, no writes in place, no control flow that depends on data. The
correlation and the coordinates stay in float32 whatever the weights' type, as in the published code: half precision
cannot hold a position in a wide image to better than an eighth of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livemoments.errors import UsageError
from livemoments.reference.raft_layers import CONTEXT_CHANNELS, HIDDEN_CHANNELS, UPSAMPLING, Encoder, UpdateBlock

Correlation = Literal["all-pairs", "on-demand"]
ContextNorm = Literal["image", "running"]

ITERATIONS = 20
"""Iterations that upstream runs."""
CELL_PX = UPSAMPLING
"""Side of one cell of the coarse grid: images' sides must be multiples of it."""
MIN_SIDE_PX = 64
"""The smallest side for which the pyramid's last level still holds a cell."""
LEVELS = 4
"""Levels of the correlation pyramid."""
RADIUS = 4
"""The lookup reads offsets of -4..4 cells along both axes, on every level."""
FEATURE_CHANNELS = 256
"""Channels of the features that are correlated."""
WINDOW_BYTES_CPU = 4 << 20
"""On-demand correlation gathers this many bytes of features at a time: what stays in a core's cache."""
WINDOW_BYTES_GPU = 256 << 20
"""The same on an accelerator, where a launch costs more than a trip to memory."""

_TAPS = 2 * RADIUS + 1
_WINDOW = 2 * RADIUS + 2
"""Whole cells along one axis that 9 samples at a common fraction lie between."""


def all_pairs_bytes(height_px: int, width_px: int, batch: int = 1) -> int:
    """Bytes of the float32 correlation pyramid that ``correlation="all-pairs"`` holds.

    With ``n = (H / 8) (W / 8)`` cells it is ``4 n (n + n/4 + n/16 + n/64)`` bytes, about ``H^2 W^2 / 771``: 4.7 MB for
    256 x 256, 89 MB for 512 x 512, 1.43 GB for 1024 x 1024, 5.5 GB for 1440 x 1440.
    """
    h, w = height_px // CELL_PX, width_px // CELL_PX
    return 4 * batch * h * w * sum((h >> level) * (w >> level) for level in range(LEVELS))


def correlation_pyramid(features1: Tensor, features2: Tensor) -> list[Tensor]:
    """All pairs' correlations, averaged over 2x2, 4x4 and 8x8 cells of the second image (section 3.2).

    Args:
        features1: (B, C, h, w), float32.
        features2: (B, C, h, w), float32.

    Returns:
        One (B * h * w, h >> level, w >> level) per level.
    """
    channels, h, w = features1.shape[1:]
    queries = features1.flatten(2).transpose(1, 2) * channels**-0.5
    volume = torch.matmul(queries, features2.flatten(2)).reshape(-1, 1, h, w)
    pyramid = [volume]
    for _ in range(LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return [level.squeeze(1) for level in pyramid]


def feature_pyramid(features2: Tensor) -> list[Tensor]:
    """The second image's features, averaged as the correlations would be: averaging and the inner product commute.

    Args:
        features2: (B, C, h, w), float32.

    Returns:
        One (B, h >> level, w >> level, C), contiguous, per level: a cell's features lie side by side.
    """
    levels = [features2]
    for _ in range(LEVELS - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return [level.permute(0, 2, 3, 1).contiguous() for level in levels]


def _axis_window(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells around positions on one axis, and the two weights with which each pair of neighbours is mixed.

    All 9 offsets of a query share one fraction, so 10 whole cells are read and mixed pairwise. Cells outside the map
    get weight 0, which is bilinear sampling with zeros outside; no division by the size is needed, so one cell is
    enough.

    Args:
        position: (Q, 1), float32, cells.
        size: cells along the axis.

    Returns:
        Cells (Q, 10), int64, inside the map; lower and upper weights (Q, 9).
    """
    base = torch.floor(position)
    fraction = position - base
    cells = base + torch.arange(-RADIUS, RADIUS + 2, dtype=position.dtype, device=position.device)
    inside = ((cells >= 0) & (cells <= size - 1)).to(position.dtype)
    clamped = cells.clamp(0, size - 1).to(torch.int64)
    return clamped, (1 - fraction) * inside[:, :-1], fraction * inside[:, 1:]


def _mix(window: Tensor, weights_x: tuple[Tensor, Tensor], weights_y: tuple[Tensor, Tensor]) -> Tensor:
    """Bilinear samples of a window of whole cells: (Q, 10 over x, 10 over y) to (Q, 81), x the slower axis."""
    (low_x, high_x), (low_y, high_y) = weights_x, weights_y
    columns = window[:, :-1] * low_x[:, :, None] + window[:, 1:] * high_x[:, :, None]
    samples = columns[:, :, :-1] * low_y[:, None, :] + columns[:, :, 1:] * high_y[:, None, :]
    return samples.flatten(1)


def _level_window(
    coordinates: Tensor, level: int, height: int, width: int
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Flat cell indices (Q, 100), x the slower axis as the published weights expect, and both axes' weights."""
    x = coordinates[:, 0].reshape(-1, 1) * 0.5**level
    y = coordinates[:, 1].reshape(-1, 1) * 0.5**level
    columns, *weights_x = _axis_window(x, width)
    rows, *weights_y = _axis_window(y, height)
    cells = (rows[:, None, :] * width + columns[:, :, None]).flatten(1)
    return cells, (weights_x[0], weights_x[1]), (weights_y[0], weights_y[1])


def _to_maps(samples: Sequence[Tensor], coordinates: Tensor) -> Tensor:
    """Each level's (B * h * w, 81) to (B, 324, h, w)."""
    batch, _, h, w = coordinates.shape
    return torch.cat(list(samples), dim=1).reshape(batch, h, w, -1).permute(0, 3, 1, 2)


def look_up(pyramid: Sequence[Tensor], coordinates: Tensor) -> Tensor:
    """Samples the correlations around where each cell is thought to have gone (section 3.2, the lookup operator).

    Args:
        pyramid: from :func:`correlation_pyramid`.
        coordinates: (B, 2, h, w), float32: x and y in the second image, cells.

    Returns:
        (B, 4 * 81, h, w): level-major, then the offset in x, then the offset in y.
    """
    samples = []
    for level, volume in enumerate(pyramid):
        height, width = volume.shape[1:]
        cells, weights_x, weights_y = _level_window(coordinates, level, height, width)
        window = volume.flatten(1).gather(1, cells).reshape(-1, _WINDOW, _WINDOW)
        samples.append(_mix(window, weights_x, weights_y))
    return _to_maps(samples, coordinates)


def look_up_on_demand(features1: Tensor, levels: Sequence[Tensor], coordinates: Tensor) -> Tensor:
    """What :func:`look_up` gives, from the features: only the 100 cells that a query touches are correlated.

    Memory grows with the number of cells instead of its square. The features of at most ``WINDOW_BYTES_CPU`` (or
    ``_GPU``) bytes of windows are gathered at a time.

    Args:
        features1: (B, C, h, w), float32.
        levels: from :func:`feature_pyramid`.
        coordinates: (B, 2, h, w), float32: x and y in the second image, cells.

    Returns:
        (B, 4 * 81, h, w), as :func:`look_up`.
    """
    batch, channels, h, w = features1.shape
    queries = (features1 * channels**-0.5).permute(0, 2, 3, 1).reshape(batch * h * w, channels, 1)
    item = torch.arange(batch, device=features1.device).repeat_interleave(h * w)[:, None]
    limit_bytes = WINDOW_BYTES_CPU if features1.device.type == "cpu" else WINDOW_BYTES_GPU
    step = max(1, limit_bytes // (_WINDOW**2 * channels * queries.element_size()))
    samples = []
    for level, features2 in enumerate(levels):
        height, width = features2.shape[1:3]
        cells, weights_x, weights_y = _level_window(coordinates, level, height, width)
        cells = cells + item * (height * width)
        table = features2.flatten(0, 2)
        parts = []
        for chunk, query in zip(cells.split(step), queries.split(step), strict=True):
            window = table.index_select(0, chunk.flatten()).reshape(-1, _WINDOW**2, channels)
            parts.append(torch.bmm(window, query))
        window = torch.cat(parts).reshape(-1, _WINDOW, _WINDOW)
        samples.append(_mix(window, weights_x, weights_y))
    return _to_maps(samples, coordinates)


def pixel_grid(height: int, width: int, device: torch.device) -> Tensor:
    """x and y of every cell, (1, 2, height, width), float32."""
    x = torch.arange(width, dtype=torch.float32, device=device)[None, :].expand(height, width)
    y = torch.arange(height, dtype=torch.float32, device=device)[:, None].expand(height, width)
    return torch.stack([x, y])[None]


def upsample_convex(flow: Tensor, mask_logits: Tensor) -> Tensor:
    """Brings the coarse flow to full size: every pixel a convex combination of 9 neighbouring cells (section 3.3).

    Args:
        flow: (B, 2, h, w), in cells.
        mask_logits: (B, 9 * 64, h, w).

    Returns:
        (B, 2, 8 h, 8 w), in pixels.
    """
    h, w = flow.shape[2:]
    weights = torch.softmax(mask_logits.reshape(-1, 9, UPSAMPLING**2, h, w), dim=1)
    padded = F.pad(flow * UPSAMPLING, (1, 1, 1, 1))
    neighbours = [padded[:, :, dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)]
    fine = [
        (weights * torch.stack([neighbour[:, axis] for neighbour in neighbours], dim=1)[:, :, None]).sum(dim=1)
        for axis in range(2)
    ]
    return F.pixel_shuffle(torch.cat(fine, dim=1), UPSAMPLING)


class RAFT(nn.Module):
    """The large RAFT model, for inference: train and eval mode compute the same.

    Args:
        iterations: recurrent updates, at least 1.
        correlation: ``"all-pairs"`` computes the correlation volume once and holds it (:func:`all_pairs_bytes`);
            ``"on-demand"`` computes what a lookup needs when it needs it: memory linear in the image's area, the same
            result to rounding. On-demand is for PyTorch: exported, it would unroll one node per chunk of the image.
        context_norm: ``"image"``, the context encoder normalises by each image's statistics, as LiveMoments' code does;
            ``"running"``, by the stored ones, as the paper does.

    Raises:
        UsageError: an argument that cannot be used.
    """

    def __init__(
        self,
        iterations: int = ITERATIONS,
        correlation: Correlation = "all-pairs",
        context_norm: ContextNorm = "image",
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise UsageError(f"RAFT cannot run {iterations} iterations", fix="ask for at least 1")
        for name, value, choices in (
            ("correlation", correlation, get_args(Correlation)),
            ("context norm", context_norm, get_args(ContextNorm)),
        ):
            if value not in choices:
                raise UsageError(f"unknown {name} {value!r}", fix=f"choose one of: {', '.join(choices)}")
        self.iterations = iterations
        self.correlation: Correlation = correlation
        self.fnet = Encoder(FEATURE_CHANNELS, "instance")
        self.cnet = Encoder(HIDDEN_CHANNELS + CONTEXT_CHANNELS, context_norm)
        self.update_block = UpdateBlock(LEVELS * _TAPS**2)

    def forward(self, image1: Tensor, image2: Tensor) -> Tensor:
        """Estimates where each pixel of ``image1`` is found in ``image2``.

        Args:
            image1: (B, 3, H, W) in [-1, 1]; H and W multiples of 8, at least 64.
            image2: the same shape.

        Returns:
            flow (B, 2, H, W), float32: x and y, pixels.

        Raises:
            UsageError: shapes that differ, or sides that are too small or no multiples of 8.
        """
        _check_images(image1, image2)
        dtype = self.fnet.conv1.weight.dtype
        image1, image2 = image1.to(dtype), image2.to(dtype)
        features1, features2 = self.fnet(image1).float(), self.fnet(image2).float()
        state, context = self.cnet(image1).split([HIDDEN_CHANNELS, CONTEXT_CHANNELS], dim=1)
        state, context = torch.tanh(state), F.relu(context)

        on_demand = self.correlation == "on-demand"
        pyramid = feature_pyramid(features2) if on_demand else correlation_pyramid(features1, features2)
        batch, _, h, w = features1.shape
        start = pixel_grid(h, w, features1.device).expand(batch, 2, h, w)
        coordinates = start
        for _ in range(self.iterations):
            if on_demand:
                correlation = look_up_on_demand(features1, pyramid, coordinates)
            else:
                correlation = look_up(pyramid, coordinates)
            flow = coordinates - start
            state, change = self.update_block(state, context, correlation.to(dtype), flow.to(dtype))
            coordinates = coordinates + change.float()
        return upsample_convex(coordinates - start, self.update_block.mask_logits(state).float())


def _check_images(image1: Tensor, image2: Tensor) -> None:
    if image1.dim() != 4 or image2.dim() != 4 or image1.shape[1] != 3 or image1.shape != image2.shape:
        shapes = f"{tuple(image1.shape)} and {tuple(image2.shape)}"
        raise UsageError(f"RAFT needs two images of one shape (B, 3, H, W), not {shapes}")
    for side, name in ((image1.shape[2], "height"), (image1.shape[3], "width")):
        if side < MIN_SIDE_PX:
            raise UsageError(
                f"RAFT needs images of at least {MIN_SIDE_PX} x {MIN_SIDE_PX} px; the {name} is {side} px",
                fix="use larger images",
            )
        if side % CELL_PX != 0:
            raise UsageError(
                f"RAFT needs sides that are multiples of {CELL_PX} px; the {name} is {side} px",
                fix="pad the images first: livemoments.reference.flow.estimate_flow does",
            )
