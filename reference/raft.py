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
from typing import Literal, NamedTuple, get_args

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
"""Whole cells along one axis between which 9 samples at one fraction lie."""


def all_pairs_bytes(height_px: int, width_px: int, batch: int = 1) -> int:
    """Bytes of the float32 correlation pyramid that ``correlation="all-pairs"`` holds.

    With ``n = (H / 8) (W / 8)`` cells it is ``4 n (n + n/4 + n/16 + n/64)`` bytes, about ``H^2 W^2 / 771``: 5.6 MB for
    256 x 256, 89 MB for 512 x 512, 1.43 GB for 1024 x 1024, 5.6 GB for 1440 x 1440.
    """
    h, w = height_px // CELL_PX, width_px // CELL_PX
    return 4 * batch * h * w * sum((h >> level) * (w >> level) for level in range(LEVELS))


class Pyramid(NamedTuple):
    """What a lookup samples, on every level.

    Attributes:
        levels: all pairs' correlations, (B * h * w, cells of the level) each; or, on demand, the second image's
        features,
            (B * cells of the level, C) each.
        widths: (LEVELS, 1), int64: cells along x on each level.
        heights: (LEVELS, 1), int64: cells along y on each level.
    """

    levels: list[Tensor]
    widths: Tensor
    heights: Tensor


def _sizes(maps: Sequence[Tensor], axis: int) -> Tensor:
    return torch.cat([torch.full((1, 1), m.shape[axis], dtype=torch.int64, device=m.device) for m in maps])


def correlation_pyramid(features1: Tensor, features2: Tensor) -> Pyramid:
    """All pairs' correlations, averaged over 2x2, 4x4 and 8x8 cells of the second image (section 3.2).

    Args:
        features1: (B, C, h, w), float32.
        features2: (B, C, h, w), float32.
    """
    channels, h, w = features1.shape[1:]
    queries = features1.flatten(2).transpose(1, 2) * channels**-0.5
    maps = [torch.matmul(queries, features2.flatten(2)).reshape(-1, 1, h, w)]
    for _ in range(LEVELS - 1):
        maps.append(F.avg_pool2d(maps[-1], 2))
    return Pyramid([m.flatten(1) for m in maps], _sizes(maps, 3), _sizes(maps, 2))


def feature_pyramid(features2: Tensor) -> Pyramid:
    """The second image's features, averaged as the correlations would be: averaging and the inner product commute.

    Args:
        features2: (B, C, h, w), float32.
    """
    maps = [features2]
    for _ in range(LEVELS - 1):
        maps.append(F.avg_pool2d(maps[-1], 2))
    tables = [m.permute(0, 2, 3, 1).flatten(0, 2).contiguous() for m in maps]
    return Pyramid(tables, _sizes(maps, 3), _sizes(maps, 2))


class _Windows(NamedTuple):
    """Which cells each query reads on each level, and how they are mixed.

    Attributes:
        cells: (Q, LEVELS, 100), int64: flat indices, x the slower axis, as the published weights expect.
        low_x: (Q, LEVELS, 9): weight of the lower of each pair of neighbours along x.
        high_x: (Q, LEVELS, 9): weight of the upper of each pair along x.
        low_y: (Q, LEVELS, 9): weight of the lower of each pair along y.
        high_y: (Q, LEVELS, 9): weight of the upper of each pair along y.
    """

    cells: Tensor
    low_x: Tensor
    high_x: Tensor
    low_y: Tensor
    high_y: Tensor


def _axis_window(position: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The cells around positions on one axis, and the two weights with which each pair of neighbours is mixed.

    All 9 offsets of a query share one fraction, so 10 whole cells are read and mixed pairwise: fewer reads than 9 x 9
    bilinear samples of 4 cells. Cells outside the map get weight 0, which is bilinear sampling with zeros outside.
    Nothing divides by the size, so a level one cell wide is sampled like any other.

    Args:
        position: (Q, LEVELS, 1), float32, cells of the level.
        sizes: (LEVELS, 1), int64, cells along the axis.

    Returns:
        Cells (Q, LEVELS, 10), int64, inside the map; lower and upper weights (Q, LEVELS, 9).
    """
    base = torch.floor(position)
    fraction = position - base
    offsets = torch.arange(-RADIUS, RADIUS + 2, device=position.device)
    # Clamped as integers: a position that is not finite then reads some cell, and its weight carries the NaN on.
    cells = base.to(torch.int64) + offsets
    nearest = torch.minimum(cells.clamp(min=0), sizes - 1)
    inside = (cells == nearest).float()
    return nearest, (1 - fraction) * inside[..., :-1], fraction * inside[..., 1:]


def _windows(coordinates: Tensor, pyramid: Pyramid) -> _Windows:
    scales = torch.tensor([[0.5**level] for level in range(LEVELS)], device=coordinates.device)
    columns, low_x, high_x = _axis_window(coordinates[:, 0].reshape(-1, 1, 1) * scales, pyramid.widths)
    rows, low_y, high_y = _axis_window(coordinates[:, 1].reshape(-1, 1, 1) * scales, pyramid.heights)
    cells = columns[..., :, None] + (rows * pyramid.widths)[..., None, :]
    return _Windows(cells.flatten(2), low_x, high_x, low_y, high_y)


def _mix(values: Sequence[Tensor], windows: _Windows, coordinates: Tensor) -> Tensor:
    """Bilinear samples from each level's window of whole cells: LEVELS times (Q, 100) to (B, LEVELS * 81, h, w)."""
    window = torch.stack(list(values), dim=1).reshape(-1, LEVELS, _WINDOW, _WINDOW)
    columns = window[:, :, :-1] * windows.low_x[..., :, None] + window[:, :, 1:] * windows.high_x[..., :, None]
    samples = columns[..., :-1] * windows.low_y[..., None, :] + columns[..., 1:] * windows.high_y[..., None, :]
    batch, _, h, w = coordinates.shape
    return samples.reshape(batch, h, w, LEVELS * _TAPS**2).permute(0, 3, 1, 2)


def look_up(pyramid: Pyramid, coordinates: Tensor) -> Tensor:
    """Samples the correlations around where each cell is thought to have gone (section 3.2, the lookup operator).

    Args:
        pyramid: from :func:`correlation_pyramid`.
        coordinates: (B, 2, h, w), float32: x and y in the second image, cells.

    Returns:
        (B, 4 * 81, h, w): by level, then by offset in x, then by offset in y.
    """
    windows = _windows(coordinates, pyramid)
    values = [volume.gather(1, windows.cells[:, level]) for level, volume in enumerate(pyramid.levels)]
    return _mix(values, windows, coordinates)


def look_up_on_demand(features1: Tensor, pyramid: Pyramid, coordinates: Tensor) -> Tensor:
    """What :func:`look_up` gives, from the features: only the 100 cells that a query touches are correlated.

    Memory grows with the number of cells instead of its square. The features of at most ``WINDOW_BYTES_CPU`` (or
    ``_GPU``) bytes of windows are gathered at a time.

    Args:
        features1: (B, C, h, w), float32.
        pyramid: from :func:`feature_pyramid`.
        coordinates: (B, 2, h, w), float32: x and y in the second image, cells.

    Returns:
        (B, 4 * 81, h, w), as :func:`look_up`.
    """
    batch, channels, h, w = features1.shape
    queries = (features1 * channels**-0.5).permute(0, 2, 3, 1).reshape(batch * h * w, channels, 1)
    image = torch.arange(batch, device=features1.device).repeat_interleave(h * w)[:, None]
    limit_bytes = WINDOW_BYTES_CPU if features1.device.type == "cpu" else WINDOW_BYTES_GPU
    step = max(1, limit_bytes // (_WINDOW**2 * channels * queries.element_size()))
    windows = _windows(coordinates, pyramid)
    # One allocation for the results: small ones kept between the chunks' large ones would fragment the heap.
    values = queries.new_empty(LEVELS, queries.shape[0], _WINDOW**2)
    for level, table in enumerate(pyramid.levels):
        cells = windows.cells[:, level] + image * (table.shape[0] // batch)
        for start in range(0, queries.shape[0], step):
            chunk = slice(start, start + step)
            features2 = table.index_select(0, cells[chunk].flatten()).reshape(-1, _WINDOW**2, channels)
            values[level, chunk] = torch.bmm(features2, queries[chunk]).squeeze(2)
    return _mix(values.unbind(), windows, coordinates)


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

    Export it with two different example tensors: one tensor given twice is traced as one input, and the second image is
    then silently ignored.

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

        if self.correlation == "on-demand":
            pyramid, queries = feature_pyramid(features2), features1
        else:
            pyramid, queries = correlation_pyramid(features1, features2), None
        batch, _, h, w = features1.shape
        start = pixel_grid(h, w, features1.device).expand(batch, 2, h, w)
        coordinates = start
        for _ in range(self.iterations):
            state, coordinates = self.refine(state, coordinates, start, context, pyramid, queries)
        return upsample_convex(coordinates - start, self.update_block.mask_logits(state).float())

    def refine(
        self,
        state: Tensor,
        coordinates: Tensor,
        start: Tensor,
        context: Tensor,
        pyramid: Pyramid,
        queries: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One iteration (section 3.3).

        Args:
            state: (B, 128, h, w), recurrent.
            coordinates: (B, 2, h, w), float32: where each cell is thought to have gone.
            start: (B, 2, h, w), float32: where it came from.
            context: (B, 128, h, w).
            pyramid: the correlation pyramid that a lookup samples.
            queries: the first image's features (B, C, h, w) where correlations are computed on demand, else ``None``.

        Returns:
            The next state and coordinates.
        """
        if queries is None:
            correlation = look_up(pyramid, coordinates)
        else:
            correlation = look_up_on_demand(queries, pyramid, coordinates)
        dtype = state.dtype
        flow = (coordinates - start).to(dtype)
        state, change = self.update_block(state, context, correlation.to(dtype), flow)
        return state, coordinates + change.float()


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
