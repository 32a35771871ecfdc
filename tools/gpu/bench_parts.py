"""What stands beside the two transformers (motion encoder, RAFT, VAE), and upstream's way with diffusers' modules."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch
from bench_measure import peak_memory, time_runs
from bench_networks import Inputs, Setup, build_motion, randomise, sigmas
from bench_tile import whens
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from livemoments.reference.raft import RAFT


def has_diffusers() -> bool:
    """Whether the VAE and diffusers' own transformer can be built."""
    return importlib.util.find_spec("diffusers") is not None


def measure_part(run: Callable[[], object], setup: Setup, *, repeats: int) -> dict[str, Any]:
    """Latency, peak memory and operations (by torch's counter) of one network's run."""
    # The counter does not know the CPU's fused attention.
    attention = contextlib.nullcontext() if setup.device.type == "cuda" else sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, attention:
        run()
    with peak_memory(setup.device) as peak:
        latency = time_runs(run, setup.device, repeats=repeats, warmup=1)
    operations = counter.get_total_flops()
    return {
        "latency": asdict(latency),
        "peak_memory_bytes": asdict(peak),
        "tflop": operations / 1e12,
        "tflop_per_s": operations / latency.median_ms / 1e9,
    }


def motion_part(setup: Setup, inputs: Inputs) -> Callable[[], object]:
    """The motion encoder and its 24 projections."""
    encoder, projections = build_motion(setup)
    return lambda: projections(encoder(inputs.flow))


def raft_part(setup: Setup, correlation: Literal["all-pairs", "on-demand"]) -> Callable[[], object]:
    """RAFT in float32 on a pair of tiles."""
    with torch.device("meta"):
        network = RAFT(correlation=correlation)
    network = network.to_empty(device=setup.device).eval().requires_grad_(False)
    randomise(network, "raft", setup)
    pair = _images(setup, torch.float32), _images(setup, torch.float32)
    return lambda: network(*pair)


def vae_part(setup: Setup, direction: Literal["encode", "decode"]) -> Callable[[], object]:
    """Half of diffusers' VAE on one tile."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(setup.sizes.vae()).to(setup.dtype)
    autoencoder = autoencoder.to_empty(device=setup.device).eval().requires_grad_(False)
    randomise(autoencoder, "vae", setup)
    if direction == "encode":
        image = _images(setup, setup.dtype)
        return lambda: autoencoder.encoder(image)
    scale = 2 ** (len(setup.sizes.vae_channels) - 1)
    shape = (setup.batch, setup.sizes.latent_channels, setup.tile_px // scale, setup.tile_px // scale)
    latent = torch.randn(shape, device=setup.device).to(setup.dtype)
    return lambda: autoencoder.decoder(latent)


def _images(setup: Setup, dtype: torch.dtype) -> Tensor:
    return torch.rand(setup.batch, 3, setup.tile_px, setup.tile_px, device=setup.device).mul_(2).sub_(1).to(dtype)


def diffusers_tile(setup: Setup, inputs: Inputs) -> Callable[[], Tensor]:
    """Upstream's way with diffusers' transformers, through this project's reference; what it adds to the latent."""
    from livemoments.reference.mmdit import BlockGuidance, ReferenceNet, RestorationNet
    from livemoments.reference.motion import embedding_index

    config = setup.sizes.transformer()
    with torch.device("meta"):
        networks = ReferenceNet(config), RestorationNet(config)
    for network, component in zip(networks, ("transformer_ref", "transformer"), strict=True):
        network.to(setup.dtype).to_empty(device=setup.device).eval().requires_grad_(False)
        randomise(network.transformer, component, setup)
    reference, restoration = networks
    encoder, _ = build_motion(setup)
    tokens, pooled = (
        torch.randn(setup.batch, *shape, device=setup.device).to(setup.dtype)
        for shape in ((setup.sizes.prompt_tokens, config.joint_attention_dim), (config.pooled_projection_dim,))
    )
    timesteps = [when.expand(setup.batch) for when in whens(setup, "upstream")]
    levels = sigmas()

    def run() -> Tensor:
        embeddings = encoder(inputs.flow)
        change = torch.zeros_like(inputs.latent, dtype=torch.float32)
        for step, when in enumerate(timesteps):
            kv = reference(inputs.reference, when, tokens, pooled)
            guidance = [BlockGuidance(pair, embeddings[embedding_index(i)]) for i, pair in enumerate(kv)]
            latent = (inputs.latent + change).to(setup.dtype)
            velocity = restoration(latent, when, tokens, pooled, guidance)
            change = change + (levels[step + 1] - levels[step]) * velocity
        return change

    return run
