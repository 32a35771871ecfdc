"""Training pairs as latents: made in the background, encoded once, used several times while newer ones come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from pairs import TilePair, make_pair
from photographs import WindowSampler
from torch import Tensor
from vae import as_images

_AHEAD = 8
"""Pairs that are being made while the networks train."""


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """What one step trains on: latents (B, C, h, w), scaled; ``flow`` (B, 2, H, W) in pixels; ``origin`` is the first
    row and column of the crop within its tile, in tokens."""

    z_hq: Tensor
    z_lq: Tensor
    z_ref: Tensor
    flow: Tensor
    origin: tuple[int, int]


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One tile's pair, float16: posterior means and deviations (C, h, w), unscaled, and the flow (2, H, W)."""

    truth: Tensor
    lr: tuple[Tensor, Tensor]
    ref: tuple[Tensor, Tensor]
    flow: Tensor


@torch.no_grad()
def encode_pairs(vae: AutoencoderKL, pairs: Sequence[TilePair]) -> list[EncodedPair]:
    """The VAE's view of pairs of one size."""
    count = len(pairs)
    pictures = [pair.truth.astype(np.float32) / 255 for pair in pairs]
    pictures += [pair.ref.astype(np.float32) / 255 for pair in pairs]
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(as_images([*pictures, *(pair.lr for pair in pairs)])).latent_dist
    mean, std = posterior.mean.half(), posterior.std.half()
    return [
        EncodedPair(
            truth=mean[index],
            ref=(mean[count + index], std[count + index]),
            lr=(mean[2 * count + index], std[2 * count + index]),
            flow=torch.from_numpy(pair.flow).permute(2, 0, 1).half(),
        )
        for index, pair in enumerate(pairs)
    ]


class LatentPool:
    """The newest encoded pairs, from which steps draw.

    The pairs of a step depend on the seed and on how many pairs came before, so that a run that was interrupted goes on
    with pairs it has not seen.

    Args:
        vae: encodes; its config has the shift and the scaling factor.
        sampler: where photographs come from.
        seed: of the training.
        first: number of the first pair.
        capacity: pairs kept; the oldest go first.
        tile_px: their size.
        scene_px: of the scenes that they are cut from.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        sampler: WindowSampler,
        executor: ThreadPoolExecutor,
        *,
        seed: int,
        first: int,
        capacity: int,
        tile_px: int,
        scene_px: int,
    ) -> None:
        self._vae, self._sampler, self._executor = vae, sampler, executor
        self._seed, self._sizes = seed, (tile_px, scene_px)
        self._kept: deque[EncodedPair] = deque(maxlen=capacity)
        self._coming: deque[Future[TilePair]] = deque()
        self.made = first
        self._ordered = first

    def add(self, count: int) -> None:
        """Take ``count`` new pairs in, waiting for them where they are not ready."""
        while len(self._coming) < count + _AHEAD:
            self._coming.append(self._executor.submit(self._make, self._ordered))
            self._ordered += 1
        self._kept.extend(encode_pairs(self._vae, [self._coming.popleft().result() for _ in range(count)]))
        self.made += count

    def _make(self, number: int) -> TilePair:
        tile_px, scene_px = self._sizes
        return make_pair(self._sampler, self._seed, number, tile_px=tile_px, scene_px=scene_px)

    def batch(self, rng: np.random.Generator, count: int, side: int, patch: int) -> LatentBatch:
        """Crops of ``side`` latent cells, all from the same place of their tiles.

        Args:
            rng: draws the pairs, the place and the posteriors' noise.
            count: B.
            side: of the crops, in latent cells.
            patch: latent cells in a token's side.
        """
        chosen = [self._kept[int(index)] for index in rng.integers(len(self._kept), size=count)]
        whole = chosen[0].truth.shape[-1]
        row, column = (int(value) * patch for value in rng.integers((whole - side) // patch + 1, size=2))
        cells = (..., slice(row, row + side), slice(column, column + side))
        scale = chosen[0].flow.shape[-1] // whole
        pixels = (
            ...,
            slice(row * scale, (row + side) * scale),
            slice(column * scale, (column + side) * scale),
        )
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))

        def drawn(posteriors: list[tuple[Tensor, Tensor]]) -> Tensor:
            mean, std = (torch.stack([pair[part][cells] for pair in posteriors]).float() for part in (0, 1))
            return self._scaled(mean + std * torch.randn(mean.shape, generator=generator))

        return LatentBatch(
            z_hq=self._scaled(torch.stack([pair.truth[cells] for pair in chosen]).float()),
            z_lq=drawn([pair.lr for pair in chosen]),
            z_ref=drawn([pair.ref for pair in chosen]),
            flow=torch.stack([pair.flow[pixels] for pair in chosen]).float(),
            origin=(row // patch, column // patch),
        )

    def _scaled(self, latent: Tensor) -> Tensor:
        config = self._vae.config
        return (latent - config.shift_factor) * config.scaling_factor
