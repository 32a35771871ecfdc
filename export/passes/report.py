"""What a pass says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_CONSTANTS = ("prompt", "pooled", "pos_embed.position")


@dataclass(frozen=True, slots=True)
class PassReport:
    """The outcome of one pass.

    Attributes:
        name: the pass.
        changed: whether it changed anything.
        parameters_before: stored elements before it.
        parameters_after: stored elements after it.
        note: what the pass did, or why it did nothing.
    """

    name: str
    changed: bool
    parameters_before: int
    parameters_after: int
    note: str


def count_parameters(network: nn.Module) -> int:
    """Elements of a network's parameters, without what is no weight: prompt and position window."""
    return sum(p.numel() for name, p in network.named_parameters() if name not in _CONSTANTS)
