"""What the MM-DiT's tokens start from and are modulated by: patches, positions, timestep, prompt.

Architecture: SD3 (P. Esser et al., "Scaling Rectified Flow Transformers", 2024, section 4 and figure 2). Each computed
module has a stored counterpart (``Modulation``, ``ModulationTable``), which is what ``passes`` replaces it by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livemoments.reference.config import TransformerConfig

SINUSOID_CHANNELS = 256
"""Channels of the timestep's sinusoidal embedding in SD3."""
MAX_PERIOD = 10000.0
"""Longest period of that embedding."""
LAYER_NORM_EPS = 1e-6
"""SD3's layer norms; the motion embedding's has torch's default instead (``stages.motion``)."""

ZERO_ROWS = ("shift_msa", "scale_msa", "gate_msa", "shift_mlp", "scale_mlp", "gate_mlp")
"""Order of the rows of diffusers' ``AdaLayerNormZero``."""
CONTINUOUS_ROWS = ("scale_msa", "shift_msa")
"""Order of the rows of diffusers' ``AdaLayerNormContinuous``: the scale comes first there."""


class ModulationRows:
    """What modulates the two layers of one stream of one block, (D,) each, under SD3's names.

    A row that the network does not have, or that a pass took out because nothing reads it, is not there at all:
    reading it is an ``AttributeError`` that names it.

    Args:
        names: which rows there are.
        rows: the rows, in the same order.

    Attributes:
        shift_msa, shift_mlp: added after the layer norm that precedes the attention or the feed-forward layer.
        scale_msa, scale_mlp: multiplied with it, as ``1 + scale``.
        gate_msa, gate_mlp: multiplied with what the layer adds to the stream.
    """

    shift_msa: Tensor
    scale_msa: Tensor
    gate_msa: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor

    def __init__(self, names: Sequence[str] = (), rows: Iterable[Tensor] = ()) -> None:
        for name, row in zip(names, rows, strict=True):
            setattr(self, name, row)


class TimeTextEmbedding(nn.Module):
    """Timestep and pooled prompt to the conditioning vector (diffusers' ``CombinedTimestepTextProjEmbeddings``)."""

    def __init__(self, pooled_dim: int, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = _TwoLayers(SINUSOID_CHANNELS, dim)
        self.text_embedder = _TwoLayers(pooled_dim, dim)

    def forward(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        """timestep (P,) and pooled (1, pooled_dim) to (P, dim)."""
        sinusoid = timestep_sinusoid(timestep).to(pooled.dtype)
        return self.timestep_embedder(sinusoid) + self.text_embedder(pooled)


def timestep_sinusoid(timestep: Tensor) -> Tensor:
    """(P,) to (P, 256): cosines, then sines, in float32 whatever the network's type, as diffusers computes it.

    Near t = 1000 half precision would be off by a quarter of a radian in the fastest channel.
    """
    half = SINUSOID_CHANNELS // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)


class _TwoLayers(nn.Module):
    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Modulation(nn.Module):
    """The rows that modulate one stream of one block, computed from the conditioning vector.

    Attributes:
        rows: names of the rows, in the order of ``linear``'s outputs. ``scale_*`` rows come out as ``1 + scale``.
    """

    def __init__(self, dim: int, rows: tuple[str, ...]) -> None:
        super().__init__()
        self.rows = rows
        self.linear = nn.Linear(dim, len(rows) * dim)

    def table(self, conditioning: Tensor) -> Tensor:
        """(P, D) to (P, rows, D)."""
        values = self.linear(F.silu(conditioning)).unflatten(-1, (len(self.rows), -1))
        return torch.stack([_plus_one(name) + values[:, i] for i, name in enumerate(self.rows)], dim=1)

    def forward(self, conditioning: Tensor) -> ModulationRows:
        """(1, D) to one (D,) per row."""
        return ModulationRows(self.rows, self.table(conditioning)[0].unbind(0))


def _plus_one(row: str) -> float:
    return 1.0 if row.startswith("scale") else 0.0


class ModulationTable(nn.Module):
    """The same rows, stored for every point of the schedule: what :class:`Modulation` becomes by folding."""

    def __init__(self, points: int, dim: int, rows: tuple[str, ...]) -> None:
        super().__init__()
        self.rows = rows
        self.table = nn.Parameter(torch.empty(points, len(rows), dim))

    def forward(self, step: Tensor) -> ModulationRows:
        """step (1,) int64 to one (D,) per row."""
        chosen = self.table.index_select(0, step).flatten()
        return ModulationRows(self.rows, chosen.split(self.table.shape[-1]))


class TextTable(nn.Module):
    """Queries, keys and values of the first block's text tokens, stored for every point of the schedule."""

    def __init__(self, points: int, tokens: int, dim: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Parameter(torch.empty(points, tokens, dim)))

    def forward(self, step: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """step (1,) int64 to (1, T, D) each; the query is ``None`` where nobody reads it."""
        query, key, value = (
            getattr(self, name).index_select(0, step) if name in self.names else None for name in ("q", "k", "v")
        )
        if key is None or value is None:
            raise ValueError("a text table needs keys and values")
        return query, key, value


def modulate(x: Tensor, *, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of x (B, S, D) with ``scale`` (D,), already ``1 + scale``, as its weight and ``shift`` as its bias."""
    return F.layer_norm(x, x.shape[-1:], scale, shift, LAYER_NORM_EPS)


class PatchEmbedding(nn.Module):
    """Latent to image tokens with the centre window of the stored position table added.

    Attributes:
        grid: token rows and columns, fixed per network; ``position`` is the table's window for them, (1, N, D).
    """

    def __init__(self, config: TransformerConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.proj = nn.Conv2d(config.in_channels, config.dim, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(torch.empty(1, grid[0] * grid[1], config.dim))

    def forward(self, latent: Tensor) -> Tensor:
        """(B, 16, h, w) to (B, N, D)."""
        return self.proj(latent).flatten(2).transpose(1, 2) + self.position


def crop_position(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The centre window of a (1, M * M, D) position table for a grid of tokens: (1, N, D)."""
    side = math.isqrt(table.shape[1])
    rows, columns = grid
    top, left = (side - rows) // 2, (side - columns) // 2
    window = table.reshape(1, side, side, -1)[:, top : top + rows, left : left + columns]
    return window.reshape(1, rows * columns, -1)
