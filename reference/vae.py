"""The SD3 VAE: diffusers' ``AutoencoderKL``, with the posterior sampled from given noise."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from livemoments.reference.config import VaeConfig


class Vae(nn.Module):
    """Images in [-1, 1] to latents and back.

    Attributes:
        autoencoder: diffusers' network, whose state dict is the checkpoint's.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = AutoencoderKL.from_config(config.raw)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, unscaled, (B, 16, h, w), of an image (B, 3, H, W)."""
        posterior = self.autoencoder.encode(image).latent_dist
        return posterior.mean, posterior.std

    def scale(self, sample: Tensor) -> Tensor:
        """A posterior sample to the latent that the networks see: ``(sample - shift) * scaling``."""
        return (sample - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """A latent (B, 16, h, w) to an image (B, 3, H, W), nominally in [-1, 1], not clamped."""
        image: Tensor = self.autoencoder.decode(
            latent / self.config.scaling_factor + self.config.shift_factor, return_dict=False
        )[0]
        return image


def expected_vae_shapes(config: VaeConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the VAE's weights."""
    with torch.device("meta"):
        network = AutoencoderKL.from_config(config.raw)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}
