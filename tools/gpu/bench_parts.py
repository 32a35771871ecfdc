"""What stands beside the two transformers: the motion encoder, RAFT and the VAE; and the two-phase schedule."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from bench_measure import Latency, peak_memory, relative_error, release_memory, time_runs
from bench_networks import (
    STEPS,
    Inputs,
    Setup,
    build_motion,
    build_network,
    randomise,
    reference_keys,
    restore_step,
    sigmas,
)
from bench_tile import whens
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from livemoments.reference.raft import RAFT

Store = Literal["device", "host"]


def has_diffusers() -> bool:
    """Whether the VAE and diffusers' own transformer can be built."""
    return importlib.util.find_spec("diffusers") is not None


def measure_part(run: Callable[[], object], setup: Setup, *, repeats: int) -> dict[str, Any]:
    """Latency, peak memory and operations (by torch's counter) of one network's run."""
    with FlopCounterMode(display=False) as counter:
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


def phase_split(setup: Setup, inputs: Inputs, store: Store, expected: Tensor | None, *, repeats: int) -> dict[str, Any]:
    """Reference network alone for all steps, keys and values stored; then the restoration network alone.

    Args:
        setup: sizes, device, type.
        inputs: of the tile.
        store: where keys and values wait: on the device, or in pinned host memory.
        expected: what ``per-step`` adds to the latent, to compare with.
        repeats: how often each phase is timed.

    Returns:
        Each phase's latency and peak memory, the store's bytes, and the time to bring one network onto the device.
    """
    release_memory(setup.device)
    steps = whens(setup, "ours")
    network = build_network(setup, "reference", "ours")
    upload = _upload(network, setup, repeats)
    kept: list[list[Tensor]] = [[] for _ in steps]

    def first_phase() -> None:
        for step, when in enumerate(steps):
            found = reference_keys(network, inputs.reference, when)
            kept[step] = found if store == "device" else _to_host(found, kept[step])

    release_memory(setup.device)
    with peak_memory(setup.device) as first_peak:
        first = time_runs(first_phase, setup.device, repeats=repeats, warmup=1)
    del network
    first_phase_free: Callable[[], None] = first_phase
    del first_phase, first_phase_free
    release_memory(setup.device)

    encoder, projections = build_motion(setup)
    restoration = build_network(setup, "restoration", "ours")
    levels = sigmas()
    change = torch.zeros(0)

    def second_phase() -> None:
        nonlocal change
        biases = projections(encoder(inputs.flow))
        change = torch.zeros_like(inputs.latent, dtype=torch.float32)
        for step, when in enumerate(steps):
            kv = kept[step] if store == "device" else [t.to(setup.device, non_blocking=True) for t in kept[step]]
            latent = (inputs.latent + change).to(setup.dtype)
            change = change + (levels[step + 1] - levels[step]) * restore_step(restoration, latent, when, biases, kv)

    release_memory(setup.device)
    with peak_memory(setup.device) as second_peak:
        second = time_runs(second_phase, setup.device, repeats=repeats, warmup=1)
    return {
        "latency": asdict(_sum(first, second)),
        "phases": [
            {"network": "reference", "latency": asdict(first), "peak_memory_bytes": asdict(first_peak)},
            {"network": "restoration", "latency": asdict(second), "peak_memory_bytes": asdict(second_peak)},
        ],
        "store": store,
        "store_bytes": sum(t.numel() * t.element_size() for kv in kept for t in kv),
        "upload_of_one_network": upload,
        "relative_error": None if expected is None else relative_error(change, expected),
        "steps": STEPS,
    }


def _sum(first: Latency, second: Latency) -> Latency:
    """Both phases one after the other; the percentiles' sum bounds the sum's percentiles from outside."""
    return Latency(
        first.median_ms + second.median_ms, first.p10_ms + second.p10_ms, first.p90_ms + second.p90_ms, first.n
    )


def _to_host(found: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
    pinned = found[0].is_cuda
    targets = buffers or [torch.empty(t.shape, dtype=t.dtype, pin_memory=pinned) for t in found]
    return [target.copy_(t, non_blocking=True) for target, t in zip(targets, found, strict=True)]


def _upload(network: torch.nn.Module, setup: Setup, repeats: int) -> dict[str, Any]:
    """How long a network's weights take from pinned host memory to the device (a copy on a CPU)."""
    total = sum(p.numel() * p.element_size() for p in network.parameters())
    host = torch.zeros(total, dtype=torch.uint8, pin_memory=setup.device.type == "cuda")
    target = torch.empty_like(host, device=setup.device)
    latency = time_runs(lambda: target.copy_(host, non_blocking=True), setup.device, repeats=repeats, warmup=1)
    return {"bytes": total, "latency": asdict(latency)}
