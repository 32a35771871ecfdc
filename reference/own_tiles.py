"""The tiles that a checkpoint was trained for: what an export and a recording take when they are told nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from livemoments.types import Size

if TYPE_CHECKING:
    from livemoments.reference.checkpoint import Configs

MIN_TILE_PX = 64
"""Below that RAFT's correlation pyramid has empty levels."""


def default_tile(configs: Configs, own: int | None = None) -> Size:
    """The checkpoint's training size in pixels: what its ``inference_config.yml`` says, else the networks'
    ``sample_size``, which is in latent cells; at least what RAFT needs.
    """
    side = max(own or configs.vae.scale * configs.transformer.sample_size, MIN_TILE_PX)
    return Size(side, side)


def default_overlap(configs: Configs, sizes: Sequence[Size]) -> int:
    """A sixteenth of the smallest side, as upstream's 64 of 1024 pixels, in whole tokens and at least one."""
    cell = configs.vae.scale * configs.transformer.patch_size
    smallest = min(min(size.height, size.width) for size in sizes)
    return max(1, round(smallest / 16 / cell)) * cell
