"""Training pairs as latents: made in the background, encoded once, used several times while newer ones come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from pairs import TilePair, make_pair
from photographs import WindowSampler
from torch import Tensor
from vae import as_images

_AHEAD = 24
"""Pairs that are being made while the networks train."""
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """What one step trains on: latents (B, C, h, w), scaled; ``flow`` (B, 2, H, W) in pixels."""

    z_hq: Tensor
    z_lq: Tensor
    z_ref: Tensor
    flow: Tensor

    def cropped(self, rng: np.random.Generator, side: int, multiple: int) -> LatentBatch:
        """A square of every pair, at a place of its own that is a multiple, mirrored and turned at random.

        Args:
            rng: of places and turns.
            side: of the squares; latents and flow have one size.
            multiple: a token's side.
        """
        parts = []
        for pair in range(len(self.z_hq)):
            rows, columns = ((length - side) // multiple + 1 for length in self.z_hq.shape[-2:])
            y, x = multiple * int(rng.integers(rows)), multiple * int(rng.integers(columns))
            across, down, turned = (bool(value) for value in rng.random(3) < 0.5)
            tensors = (tensor[pair] for tensor in (self.z_hq, self.z_lq, self.z_ref, self.flow))
            part = torch.cat([tensor[:, y : y + side, x : x + side] for tensor in tensors])
            part = part.flip([axis for axis, flip in ((-1, across), (-2, down)) if flip])
            part[-2:] *= torch.tensor([-1.0 if across else 1.0, -1.0 if down else 1.0]).view(2, 1, 1)
            if turned:
                part = torch.cat([part[:-2], part[-2:].flip(0)]).transpose(-1, -2)
            parts.append(part)
        channels = self.z_hq.shape[1]
        z_hq, z_lq, z_ref, flow = torch.stack(parts).split([channels, channels, channels, 2], dim=1)
        return LatentBatch(z_hq, z_lq, z_ref, flow)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One tile's pair, float16: posterior means and deviations (C, h, w), unscaled, and the flow (2, H, W)."""

    truth: Tensor
    lr: tuple[Tensor, Tensor]
    ref: tuple[Tensor, Tensor]
    flow: Tensor


_sampler: WindowSampler | None = None  # a worker's


def start_worker(sampler: WindowSampler) -> None:
    """Begin a process that makes pairs: photographs travel once, not with every pair."""
    global _sampler
    cv2.setNumThreads(1)  # the cores are the networks'
    _sampler = sampler


def _make(seed: int, number: int, tile_px: int, scene_px: int, motion: float) -> TilePair:
    if _sampler is None:
        raise RuntimeError("start_worker was not called")
    return make_pair(_sampler, seed, number, tile_px=tile_px, scene_px=scene_px, motion=motion)


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
        executor: makes the pairs; of processes with :func:`start_worker` (threads would wait for Python's lock).
        seed: of the training.
        first: number of the first pair.
        capacity: pairs kept; the oldest go first.
        tile_px: their size.
        scene_px: of the scenes that they are cut from.
        still_pairs, moving_pairs: up to the first number nothing moves, from the second on everything as drawn.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        executor: Executor,
        *,
        seed: int,
        first: int,
        capacity: int,
        tile_px: int,
        scene_px: int,
        still_pairs: int = 0,
        moving_pairs: int = 0,
    ) -> None:
        self._vae, self._executor = vae, executor
        self._seed, self._sizes, self._curriculum = seed, (tile_px, scene_px), (still_pairs, moving_pairs)
        self._kept: deque[EncodedPair] = deque(maxlen=capacity)
        self._coming: deque[Future[TilePair]] = deque()
        self.made = first
        self._ordered = first

    def add(self, count: int) -> None:
        """Take ``count`` new pairs in, waiting for them where they are not ready."""
        while len(self._coming) < count + _AHEAD:
            motion = self._motion(self._ordered)
            self._coming.append(self._executor.submit(_make, self._seed, self._ordered, *self._sizes, motion))
            self._ordered += 1
        for first in range(0, count, _ENCODED_AT_ONCE):
            made = [self._coming.popleft().result() for _ in range(min(_ENCODED_AT_ONCE, count - first))]
            self._kept.extend(encode_pairs(self._vae, made))
        self.made += count

    def _motion(self, number: int) -> float:
        still, moving = self._curriculum
        return min(1.0, max(0.0, (number - still) / max(1, moving - still))) if moving else 1.0

    def batch(self, rng: np.random.Generator, count: int) -> LatentBatch:
        """``count`` pairs and their posteriors' noise, as ``rng`` draws them."""
        chosen = [self._kept[int(index)] for index in rng.integers(len(self._kept), size=count)]
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))

        def drawn(posteriors: list[tuple[Tensor, Tensor]]) -> Tensor:
            mean, std = (torch.stack([pair[part] for pair in posteriors]).float() for part in (0, 1))
            return self._scaled(mean + std * torch.randn(mean.shape, generator=generator))

        return LatentBatch(
            z_hq=self._scaled(torch.stack([pair.truth for pair in chosen]).float()),
            z_lq=drawn([pair.lr for pair in chosen]),
            z_ref=drawn([pair.ref for pair in chosen]),
            flow=torch.stack([pair.flow for pair in chosen]).float(),
        )

    def _scaled(self, latent: Tensor) -> Tensor:
        config = self._vae.config
        return (latent - config.shift_factor) * config.scaling_factor
