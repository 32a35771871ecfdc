"""The motion encoder: an optical flow field to embeddings that bias the reference keys (paper, section 3.4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from livemoments.errors import CheckpointError
from livemoments.reference.config import TransformerConfig

_BLOCKS_PER_EMBEDDING = 2  # each embedding serves two consecutive transformer blocks


class MotionEncoder(nn.Module):
    """Strided 3x3 convolutions down to the token grid, then a chain of 1x1 convolutions, SiLU after each.

    State-dict keys are upstream's: ``blocks.0.{0,2,4,…}`` and ``blocks.{1…}.0``.

    Args:
        widths: output channels of the strided convolutions; upstream has (512, 1024, 1536, 1536), the last is D.
        depth: number of embeddings; upstream has 12, which serves 24 transformer blocks.
    """

    def __init__(self, widths: Sequence[int], depth: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in zip((2, *widths[:-1]), widths, strict=True):
            layers += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1), nn.SiLU()]
        dim = widths[-1]
        chain = [nn.Sequential(nn.Conv2d(dim, dim, 1), nn.SiLU()) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList([nn.Sequential(*layers), *chain])

    def forward(self, flow: Tensor) -> list[Tensor]:
        """Embed a flow field.

        Args:
            flow: (B, 2, H, W) in pixels.

        Returns:
            One (B, N, D) tensor per embedding, N = (H / 2^k)(W / 2^k) for k strided convolutions, row-major.
        """
        embeddings = []
        features = flow
        for block in self.blocks:
            features = block(features)
            embeddings.append(features.flatten(2).transpose(1, 2))
        return embeddings

    @property
    def max_blocks(self) -> int:
        """The most transformer blocks that the embeddings serve."""
        return len(self.blocks) * _BLOCKS_PER_EMBEDDING


def embedding_index(block: int) -> int:
    """Which embedding serves a transformer block."""
    return block // _BLOCKS_PER_EMBEDDING


def motion_sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[tuple[int, ...], int]:
    """Widths and depth of the encoder that a state dict belongs to, for :class:`MotionEncoder`.

    Keys that do not fit are left for the strict comparison to name.
    """
    strided = sorted(int(key.split(".")[2]) for key in shapes if key.startswith("blocks.0.") and key.endswith("weight"))
    widths = tuple(int(shapes[f"blocks.0.{index}.weight"][0]) for index in strided)
    depth = len({key.split(".")[1] for key in shapes if key.startswith("blocks.") and key.count(".") == 3})
    return widths, depth


def motion_encoder_for(path: Path, shapes: Mapping[str, Sequence[int]], config: TransformerConfig) -> MotionEncoder:
    """The encoder that a file's tensors belong to, without values (on the meta device).

    Args:
        path: the file, for messages.
        shapes: names and shapes of what it holds.
        config: of the transformers that it has to serve.

    Raises:
        CheckpointError: its width is not the transformers', or it serves fewer blocks than they have.
    """
    widths, depth = motion_sizes(shapes)
    if not widths or widths[-1] != config.dim:
        found = widths[-1] if widths else "no"
        raise CheckpointError(path, f"the motion encoder is {found} wide, the transformer {config.dim}")
    with torch.device("meta"):
        encoder = MotionEncoder(widths, depth)
    if encoder.max_blocks < config.num_layers:
        raise CheckpointError(path, f"serves {encoder.max_blocks} blocks, the transformer has {config.num_layers}")
    return encoder
