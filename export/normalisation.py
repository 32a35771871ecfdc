"""Group normalisation that half-precision graphs survive.

In half precision, the sum of squares behind a variance overflows once activations' standard deviation nears 100, and
what comes out is all zeros, without a NaN. So the statistics are taken in float32, whatever the graph's type.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.Module):
    """``torch.nn.GroupNorm`` with float32 statistics; the same parameters under the same names."""

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__()
        self.groups = groups
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape and type."""
        grouped = x.float().unflatten(1, (self.groups, -1)).flatten(2)
        normed = nn.functional.instance_norm(grouped, eps=self.eps).reshape(x.shape).to(x.dtype)
        channels = (-1, *[1] * (x.dim() - 2))
        return normed * self.weight.reshape(channels) + self.bias.reshape(channels)


def replace_group_norms(root: nn.Module) -> None:
    """Put a :class:`GroupNorm` in the place of every ``torch.nn.GroupNorm`` below ``root``, on its device and type."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                with torch.device(child.weight.device):
                    ours = GroupNorm(child.num_groups, child.num_channels, child.eps).to(child.weight.dtype)
                setattr(parent, name, ours)
