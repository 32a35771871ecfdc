"""How patches enter and leave a transformer at the beginning: by a fixed basis, apart from the positions.

Positions are added to a token, and a patch's values may have any direction in it: from random weights, the first
thousand steps went into telling the one from the other. So the beginning is written down: the patch in the basis of
JPEG (a discrete cosine transform of each colour), in those directions of the token in which positions hardly differ,
and the velocity's first guess, ``-z``, read from there. Nor did attention find the reference by itself within 1500
steps: half of its heads begin by looking at their own place in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

_SIGNAL_SHARE = 0.3
"""Of a token's energy that the patch has. Positions have the rest, whose norm is constant: so the final LayerNorm only
divides by a constant, nearly."""

_PLACE_DIM = 32  # a head's width
_SHARPNESS = 10.0
"""Of queries and keys: a token looks at its place with about nine tenths."""

Array = npt.NDArray[np.float64]


def patch_basis(patch: int) -> Array:
    """Orthonormal components of a patch of three colours, (3 patch², 3, patch, patch): from coarse to fine."""
    grey = np.ones(3) / np.sqrt(3)
    blue = np.array([-1.0, -1.0, 2.0]) / np.sqrt(6)
    red = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
    waves = sorted(((u, v) for u in range(patch) for v in range(patch)), key=lambda wave: (sum(wave), wave))
    cosines = np.array([_cosine(patch, frequency) for frequency in range(patch)])
    colours = (grey, blue, red)
    return np.array([np.einsum("c,y,x->cyx", colour, cosines[u], cosines[v]) for colour in colours for u, v in waves])


def _cosine(length: int, frequency: int) -> Array:
    wave: Array = np.cos(np.pi * frequency * (np.arange(length) + 0.5) / length)
    return wave / np.linalg.norm(wave)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The directions of a token (D,) and their measures, as both networks begin.

    Attributes:
        signal: (D, C), orthonormal, where the patch's C components lie.
        signal_mean: (C,), what positions have there, everywhere the same.
        place, place_bias: (32, D) and (32,), from a token after LayerNorm to where it is: its sines and cosines of the
            highest frequencies. All have one norm, so that two tokens' product is greatest at one place.
        scale: a component's value in a token is this times the patch's.
        deviation: what a LayerNorm divides a token by.
    """

    signal: Array
    signal_mean: Array
    place: Array
    place_bias: Array
    scale: float
    deviation: float


def beginning_of(embed: Any, latent_std: float) -> Beginning:
    """The directions for a patch embedding's table of positions.

    Args:
        embed: diffusers' ``PatchEmbed``, with patches of three channels.
        latent_std: the latents' deviation.

    Raises:
        ValueError: a token is too narrow for the components.
    """
    components = len(patch_basis(embed.patch_size))
    positions = _positions(embed)
    mean = positions.mean(axis=0)
    dim = len(mean)
    if components >= dim:
        raise ValueError(f"{components} components need tokens wider than {dim}")
    spread = (positions - mean).T @ (positions - mean) / len(positions)
    # the direction of ones is lost in a LayerNorm: it counts as taken
    _, directions = np.linalg.eigh(spread + np.full((dim, dim), 1.0))
    signal = directions[:, :components]  # ascending: where positions differ least
    energy = float(positions.var(axis=1).mean())
    # diffusers' table: sines and cosines of rows, then of columns, each from the highest frequency down
    frequencies = _PLACE_DIM // 4
    chosen = (np.arange(4)[:, None] * (dim // 4) + np.arange(frequencies)).ravel()
    weights = np.tile(10000.0 ** -(np.arange(frequencies) / (dim // 4)), 4)
    deviation = float(np.sqrt(energy / (1 - _SIGNAL_SHARE)))
    place = deviation * weights[:, None] * (np.eye(dim) - signal @ signal.T)[chosen]
    return Beginning(
        signal=signal,
        signal_mean=signal.T @ mean,
        place=place,
        place_bias=weights * mean[chosen] - place @ (mean - mean.mean()) / deviation,
        scale=float(np.sqrt((deviation**2 - energy) * dim / (latent_std**2 * 3 * embed.patch_size**2))),
        deviation=deviation,
    )


def _positions(embed: Any) -> Array:
    side = embed.height * embed.patch_size
    table: Array = embed.cropped_pos_embed(side, side)[0].double().numpy()
    return table


@torch.no_grad()
def begin_with_basis(transformer: nn.Module, beginning: Beginning) -> None:
    """Set the first convolution and the last linear layer of an SD3 transformer whose blocks add nothing yet."""
    embed: Any = transformer.get_submodule("pos_embed")
    last: Any = transformer.get_submodule("proj_out")
    basis = patch_basis(embed.patch_size)
    inward = beginning.scale * np.einsum("dj,jcyx->dcyx", beginning.signal, basis)
    outward = -(beginning.deviation / beginning.scale) * np.einsum("dj,jcyx->yxcd", beginning.signal, basis)
    embed.proj.weight.copy_(torch.from_numpy(inward))
    outward = outward.reshape(len(last.weight), -1)
    embed.proj.bias.zero_()
    last.weight.copy_(torch.from_numpy(outward))
    last.bias.copy_(torch.from_numpy(-outward @ beginning.signal @ beginning.signal_mean / beginning.deviation))


@torch.no_grad()
def begin_looking(attention: Any, beginning: Beginning, *, at_itself: bool) -> None:
    """Set the first half of a block's heads to look at one place, and to bring its patch.

    What they bring is added when training opens the block's gate. The other heads stay as they are.

    Args:
        attention: a block's; heads are 32 wide, and every one of the first half brings as many of the components.
        beginning: the directions.
        at_itself: keys say where they are. ReferenceNet's do, and RestorationNet's own do not, so that its heads look
            at the reference.
    """
    heads, components = attention.heads // 2, beginning.signal.shape[1]
    width = heads * _PLACE_DIM
    rows = np.concatenate(
        [head * _PLACE_DIM + np.arange(len(part)) for head, part in enumerate(np.array_split(range(components), heads))]
    )
    place = torch.from_numpy(np.tile(_SHARPNESS * beginning.place, (heads, 1)))
    bias = torch.from_numpy(np.tile(_SHARPNESS * beginning.place_bias, heads))
    brought = torch.from_numpy(beginning.signal).to(attention.to_v.weight)
    attention.to_q.weight[:width] = place.to(attention.to_q.weight)
    attention.to_k.weight[:width] = place.to(attention.to_k.weight) if at_itself else 0.0
    attention.to_q.bias[:width] = bias.to(attention.to_q.bias)
    attention.to_k.bias[:width] = bias.to(attention.to_k.bias) if at_itself else 0.0
    attention.to_v.weight[rows] = brought.T
    attention.to_v.bias[rows] = torch.from_numpy(-beginning.signal_mean / beginning.deviation).to(brought)
    attention.to_out[0].weight[:, rows] = brought
