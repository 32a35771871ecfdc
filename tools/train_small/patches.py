"""How patches enter and leave a transformer at the beginning: by a fixed basis, apart from the positions.

A token of the small networks is as wide as its patch has values (192), and positions are added to it: from random
weights, the first thousand steps went into telling the one from the other. So the beginning is written down: the patch
in the basis of JPEG (a discrete cosine transform of each colour), whose 120 components that matter lie in those
directions of the token in which positions hardly differ, and the velocity's first guess, ``-z``, read from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

_CHROMA_KEPT = 28
"""Of each colour difference's 64 components; finer colour is left to the decoder of the frame."""
_SIGNAL_SHARE = 0.15
"""Of a token's energy that the patch has. Positions have the rest, whose norm is constant: so the final LayerNorm only
divides by a constant, nearly."""

Array = npt.NDArray[np.float64]


def patch_basis(patch: int) -> Array:
    """Orthonormal components of a patch of three colours, (64 + 2 x 28, 3, patch, patch) for a patch of 8."""
    grey = np.ones(3) / np.sqrt(3)
    blue = np.array([-1.0, -1.0, 2.0]) / np.sqrt(6)
    red = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    waves = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda wave: (sum(wave), wave))
    chroma = waves[: _CHROMA_KEPT * patch**2 // 64]
    kept = [(grey, wave) for wave in waves] + [(colour, wave) for colour in (blue, red) for wave in chroma]
    cosines = np.array([_cosine(patch, frequency) for frequency in range(patch)])
    return np.array([np.einsum("c,y,x->cyx", colour, cosines[u], cosines[v]) for colour, (u, v) in kept])


def _cosine(length: int, frequency: int) -> Array:
    wave: Array = np.cos(np.pi * frequency * (np.arange(length) + 0.5) / length)
    return wave / np.linalg.norm(wave)


@torch.no_grad()
def begin_with_basis(transformer: nn.Module, latent_std: float) -> None:
    """Set the first convolution and the last linear layer of an SD3 transformer whose blocks add nothing yet.

    Args:
        transformer: with patches of three channels and modulations of nothing.
        latent_std: the latents' deviation.

    Raises:
        ValueError: a token is too narrow for the components.
    """
    embed: Any = transformer.get_submodule("pos_embed")
    last: Any = transformer.get_submodule("proj_out")
    basis = patch_basis(embed.patch_size)
    dim = embed.proj.out_channels
    if len(basis) >= dim:
        raise ValueError(f"{len(basis)} components need tokens wider than {dim}")
    tokens = embed.height
    positions = embed.cropped_pos_embed(tokens * embed.patch_size, tokens * embed.patch_size)[0].double().numpy()
    mean = positions.mean(axis=0)
    spread = (positions - mean).T @ (positions - mean) / len(positions)
    # the direction of ones is lost in a LayerNorm: it counts as taken
    _, directions = np.linalg.eigh(spread + np.full((dim, dim), 1.0))
    free = directions[:, : len(basis)]  # ascending: where positions differ least
    energy = np.trace(spread)
    scale = np.sqrt(_SIGNAL_SHARE / (1 - _SIGNAL_SHARE) * energy / (latent_std**2 * basis[0].size))
    deviation = np.sqrt(energy / (1 - _SIGNAL_SHARE) / dim)
    inward = scale * np.einsum("dj,jcyx->dcyx", free, basis)
    outward = -(deviation / scale) * np.einsum("dj,jcyx->yxcd", free, basis)
    embed.proj.weight.copy_(torch.from_numpy(inward))
    embed.proj.bias.copy_(torch.from_numpy(-mean))
    last.weight.copy_(torch.from_numpy(outward.reshape(-1, dim)))
    last.bias.zero_()
