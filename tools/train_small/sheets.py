"""How a run is doing: pairs of photographs that it does not train on, restored, measured and drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from latents import EncodedPair, encode_pairs
from model import LiveMomentsModel
from pairs import TilePair, make_pair
from photographs import Photograph, WindowSampler
from torch import Tensor

from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.schedule import upstream_sigmas
from livemoments.schedule import NOISE_LEVEL
from livemoments.validate.quality.fidelity import psnr_y

_PAIRS = 24
_STEPS = 6
_ROWS = 8
_SEED = 1000


class Sheet:
    """Restores a fixed set of pairs by the six sampling steps.

    Args:
        vae: trained.
        photographs: that are not trained on.
        tile_px, scene_px: of the pairs.
    """

    def __init__(self, vae: AutoencoderKL, photographs: Sequence[Photograph], *, tile_px: int, scene_px: int) -> None:
        sampler = WindowSampler(photographs)
        self._vae = vae
        self._pairs: list[TilePair] = [
            make_pair(sampler, _SEED, number, tile_px=tile_px, scene_px=scene_px) for number in range(_PAIRS)
        ]
        self._encoded = encode_pairs(vae, self._pairs)

    @torch.no_grad()
    def measure(self, model: LiveMomentsModel, path: Path) -> dict[str, float]:
        """Draw the sheet; mean PSNR (y, dB) of the input, of what was restored, of that with another pair's reference,
        and of the truth through the VAE alone.
        """
        model.eval()
        own = self._restore(model, self._encoded)
        strangers = [
            EncodedPair(pair.truth, pair.lr, other.ref, pair.flow)
            for pair, other in zip(self._encoded, [*self._encoded[1:], self._encoded[0]], strict=True)
        ]
        unrelated = self._restore(model, strangers)
        vae_only = [self._decode(self._scaled(pair.truth.float()[None])) for pair in self._encoded]
        inputs = [_bytes(pair.lr) for pair in self._pairs]
        self._draw(path, inputs, own)
        return {
            "input_db": self._psnr_db(inputs),
            "restored_db": self._psnr_db(own),
            "unrelated_db": self._psnr_db(unrelated),
            "vae_db": self._psnr_db(vae_only),
        }

    def _restore(self, model: LiveMomentsModel, pairs: Sequence[EncodedPair]) -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(_SEED)
        sigmas = [*upstream_sigmas(_STEPS), 0.0]
        pictures = []
        for pair in pairs:
            z_lq, z_ref = (self._scaled(self._drawn(part, generator)) for part in (pair.lr, pair.ref))
            z = (1 - NOISE_LEVEL) * z_lq + NOISE_LEVEL * torch.randn(z_lq.shape, generator=generator)
            for sigma, following in itertools.pairwise(sigmas):
                z = z + (following - sigma) * model(z, z_ref, pair.flow.float()[None], torch.full((1,), sigma))
            pictures.append(self._decode(z))
        return pictures

    def _drawn(self, posterior: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        mean, std = (part.float()[None] for part in posterior)
        return mean + std * torch.randn(mean.shape, generator=generator)

    def _scaled(self, latent: Tensor) -> Tensor:
        return (latent - self._vae.config.shift_factor) * self._vae.config.scaling_factor

    def _decode(self, z: Tensor) -> np.ndarray:
        latent = z / self._vae.config.scaling_factor + self._vae.config.shift_factor
        image = self._vae.decode(latent).sample[0].permute(1, 2, 0)
        return _bytes(image.numpy() * 0.5 + 0.5)

    def _psnr_db(self, pictures: Sequence[np.ndarray]) -> float:
        found = [psnr_y(picture, pair.truth) for picture, pair in zip(pictures, self._pairs, strict=True)]
        return float(np.mean(found))

    def _draw(self, path: Path, inputs: Sequence[np.ndarray], restored: Sequence[np.ndarray]) -> None:
        rows = [
            np.hstack([given, picture, pair.truth, pair.ref])
            for given, picture, pair in zip(inputs, restored, self._pairs, strict=True)
        ]
        columns = [np.vstack(rows[first : first + _ROWS]) for first in range(0, len(rows) - len(rows) % _ROWS, _ROWS)]
        write_image(path, np.hstack(columns))


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.convertScaleAbs(np.clip(picture, 0, 1), alpha=255), np.uint8)
