"""The first half of the training: the VAE, as the evidence lower bound with a fixed decoder deviation.

The deviation says how much of an image is worth a latent's bits: every latent keeps as much posterior noise as the
picture bears. The networks begin as the identity (:func:`begin_as_identity`): from random weights, a VAE that shrinks
an image four times had reached 25 dB after 800 steps, and its error would be the restoration's (README.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from pairs import PRESET, SCALE, upscaled
from photographs import WindowSampler
from schedule import rate_at
from state import Average, Log, load_state, save_state
from torch import Tensor

from livemoments.progress import Progress
from livemoments.reference.checkpoint_sizes import CheckpointSizes
from livemoments.types import Size
from livemoments.validate.synlive.degradation import apply, image_rng, sample_degradation

LATENT_STD = 8.0
"""SD3's latents have a deviation of 1, and sampling starts with noise of 0.2 in them: a small network cannot invent
what that noise hides, so its latents are larger."""


@dataclass(frozen=True, slots=True)
class VaeTraining:
    """How the VAE is trained.

    Attributes:
        steps: optimizer steps.
        batch: windows a step.
        window_px: their side.
        rate: the highest learning rate.
        decoder_std: the decoder's assumed deviation, in images of [-1, 1].
        degraded_share: of windows that are degraded and upscaled: the VAE encodes video frames too.
        latent_std: what the scaling factor makes of a latent's deviation.
        decay: of the weights' average.
        seed: of everything.
    """

    steps: int = 500
    batch: int = 16
    window_px: int = 64
    rate: float = 3e-4
    decoder_std: float = 0.01
    degraded_share: float = 0.3
    latent_std: float = LATENT_STD
    decay: float = 0.998
    seed: int = 0


_MEASURE_EVERY = 100
_SAVE_EVERY = 500
_STATISTICS_WINDOWS = 64
_CARRIER = 10.0
"""Value of the constant channels that keep a group's norm from depending on the picture, whose values are at most 1."""
_GROUP = 4  # channels: the picture's value, its negative, and both constants


def train_vae(
    sizes: CheckpointSizes, training: VaeTraining, sampler: WindowSampler, folder: Path, progress: Progress
) -> AutoencoderKL:
    """Train, or go on with, the VAE of a run.

    Args:
        sizes: the network's.
        training: how.
        sampler: where windows come from.
        folder: the run's: state and log.
        progress: where to report; the unit is steps.

    Returns:
        The averaged network; shift and scaling factor in its ``config`` are measured.
    """
    torch.manual_seed(training.seed)
    network = AutoencoderKL.from_config(sizes.vae()).to(memory_format=torch.channels_last)
    begin_as_identity(network, training.decoder_std)
    optimizer = torch.optim.AdamW(network.parameters(), training.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average({"vae": network}, training.decay)
    done, seconds = 0, 0.0
    if state := load_state(folder):
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        done, seconds = int(state["done"]), float(state["seconds"])
    log = Log(folder, seconds)
    with progress.task("VAE", total=training.steps) as task, ThreadPoolExecutor(2) as executor:
        task.advance(done)
        batches = _Batches(training, sampler, executor, done)
        sums = np.zeros(2)
        for step in range(done, training.steps):
            for group in optimizer.param_groups:
                group["lr"] = training.rate * rate_at(step, training.steps)
            noise = torch.Generator().manual_seed(int(image_rng(training.seed, f"noise:{step}").integers(1 << 62)))
            error, divergence = _step(network, optimizer, batches.next(step), training, noise)
            average.update()
            sums += error, divergence
            if (step + 1) % _MEASURE_EVERY == 0:
                error, divergence = sums / _MEASURE_EVERY
                psnr_db = 10 * np.log10(4 / error)
                log.write(step=step + 1, psnr_db=psnr_db, kl_nats=divergence)
                task.advance(_MEASURE_EVERY, note=f"{psnr_db:.2f} dB")
                sums[:] = 0
            if (step + 1) % _SAVE_EVERY == 0 or step + 1 == training.steps:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(folder, state | {"average": average.state_dict(), "done": step + 1, "seconds": log.seconds})
    network.load_state_dict(average.weights["vae"])
    network.eval().requires_grad_(False)
    _set_scale(network, training, sampler)
    return network


@torch.no_grad()
def begin_as_identity(network: AutoencoderKL, posterior_std: float) -> None:
    """Set a VAE of one level so that latents are the image and the decoder gives it back, to about 0.5 %.

    Residual branches begin at nothing. Each colour has a norm group of its own, ``[x, -x, c, -c]``: its mean is 0 and
    its deviation nearly that of the constant c, so that the group norm only divides by a constant; and
    ``silu(a) - silu(-a) = a`` takes the activation out. The other channels are free for what training finds.

    Args:
        network: whose groups are four channels each.
        posterior_std: of every latent.

    Raises:
        ValueError: the network has more than one level or other groups.
    """
    config = network.config
    if len(config.block_out_channels) != 1 or config.block_out_channels[0] != _GROUP * config.norm_num_groups:
        raise ValueError("only a VAE of one level with groups of four channels can begin as the identity")
    for name, module in network.named_modules():
        if name.endswith("conv2"):
            module.weight.zero_()
            module.bias.zero_()
    for half, colours in ((network.encoder, 3), (network.decoder, 3)):
        for convolution in (half.conv_in, half.conv_out):
            convolution.bias.zero_()
        half.conv_in.weight[: _GROUP * colours] = 0
        half.conv_out.weight.zero_()
        gain = _CARRIER / 2**0.5  # the group's deviation, which its norm divides by
        for colour in range(colours):
            first = _GROUP * colour
            for offset, sign in ((0, 1.0), (1, -1.0)):
                half.conv_in.weight[first + offset, colour, 1, 1] = sign
                half.conv_in.bias[first + 2 + offset] = sign * _CARRIER
                half.conv_out.weight[colour, first + offset, 1, 1] = sign * gain
    network.encoder.conv_out.bias[3:] = 2 * math.log(posterior_std)


def _step(
    network: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    training: VaeTraining,
    generator: torch.Generator,
) -> tuple[float, float]:
    """One optimizer step; the mean squared error and the divergence of a latent in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = network.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = network.decode(posterior.mean + posterior.std * noise).sample
    error = (decoded.float() - images).square().mean()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    values_per_latent = images.numel() / mean.numel()
    loss = error / (2 * training.decoder_std**2) * values_per_latent + divergence
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
    optimizer.step()
    return float(error.detach()), float(divergence.detach())


class _Batches:
    """The windows of each step, made one step ahead; they depend on the seed and the step alone."""

    def __init__(self, training: VaeTraining, sampler: WindowSampler, executor: ThreadPoolExecutor, first: int) -> None:
        self._training, self._sampler, self._executor = training, sampler, executor
        self._coming = self._order(first)

    def next(self, step: int) -> Tensor:
        """(B, 3, P, P) in [-1, 1]."""
        windows = [future.result() for future in self._coming]
        self._coming = self._order(step + 1)
        return as_images(windows)

    def _order(self, step: int) -> list[Any]:
        first = step * self._training.batch
        return [self._executor.submit(self._window, first + index) for index in range(self._training.batch)]

    def _window(self, number: int) -> np.ndarray:
        side = self._training.window_px
        rng = image_rng(self._training.seed, f"window:{number}")
        pixels = self._sampler.window(rng, side)
        if rng.random() >= self._training.degraded_share:
            return pixels.astype(np.float32) / 255
        parameters = sample_degradation(rng, PRESET, Size(side, side), scale=SCALE)
        return upscaled(apply(parameters, pixels, rng), side)


def as_images(windows: Sequence[np.ndarray]) -> Tensor:
    """(H, W, 3) float32 in [0, 1] each, to (B, 3, H, W) in [-1, 1], channels last in memory."""
    images = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2) * 2 - 1
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _set_scale(network: AutoencoderKL, training: VaeTraining, sampler: WindowSampler) -> None:
    """Give the config the shift and scaling factor that centre the latents and make their deviation ``latent_std``."""
    clean = replace(training, degraded_share=0.0, seed=training.seed + 1, batch=_STATISTICS_WINDOWS)
    with ThreadPoolExecutor(2) as executor:
        images = _Batches(clean, sampler, executor, 0).next(0)
    latents = network.encode(images).latent_dist.mean
    shift, std = float(latents.mean()), float(latents.std())
    network.register_to_config(shift_factor=round(shift, 4), scaling_factor=round(training.latent_std / std, 4))
