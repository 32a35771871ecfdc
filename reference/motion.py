"""The motion encoder: an optical flow field to embeddings that bias the reference keys (paper, section 3.4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

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
