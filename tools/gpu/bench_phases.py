"""The phase-split policy: the two transformers are never resident together, and keys and values wait in a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from bench_measure import Latency, peak_memory, relative_error, release_memory, time_runs
from bench_networks import Inputs, Setup, build_motion, build_network, reference_keys, restore_step, sigmas
from bench_tile import whens
from torch import Tensor, nn

Store = Literal["device", "host"]


def phase_split(setup: Setup, inputs: Inputs, store: Store, expected: Tensor | None, *, repeats: int) -> dict[str, Any]:
    """Reference network alone for all steps, keys and values stored; then the restoration network alone.

    Args:
        setup: sizes, device, type.
        inputs: of the tile.
        store: where keys and values wait: on the device, or in (pinned) host memory.
        expected: what ``per-step`` adds to the latent, to compare with.
        repeats: how often each phase is timed.

    Returns:
        Each phase's latency and peak memory, the store's bytes, and the time to bring one network onto the device.
    """
    release_memory(setup.device)
    kept, first = _first_phase(setup, inputs, store, repeats)
    release_memory(setup.device)
    change, second = _second_phase(setup, inputs, kept, repeats)
    return {
        "latency": asdict(_sum(first["latency"], second["latency"])),
        "phases": [{**phase, "latency": asdict(phase["latency"])} for phase in (first, second)],
        "store": store,
        "store_bytes": sum(t.numel() * t.element_size() for kv in kept for t in kv),
        "relative_error": None if expected is None else relative_error(change, expected),
    }


def _first_phase(setup: Setup, inputs: Inputs, store: Store, repeats: int) -> tuple[list[list[Tensor]], dict[str, Any]]:
    network = build_network(setup, "reference", "ours")
    upload = _upload(network, setup, repeats)
    steps = whens(setup, "ours")
    kept: list[list[Tensor]] = [[] for _ in steps]

    def run() -> None:
        for step, when in enumerate(steps):
            found = reference_keys(network, inputs.reference, when)
            kept[step] = found if store == "device" else _to_host(found, kept[step])

    release_memory(setup.device)
    with peak_memory(setup.device) as peak:
        latency = time_runs(run, setup.device, repeats=repeats, warmup=1)
    record = {"network": "reference", "latency": latency, "peak_memory_bytes": asdict(peak), "upload": upload}
    return kept, record


def _second_phase(
    setup: Setup, inputs: Inputs, kept: Sequence[Sequence[Tensor]], repeats: int
) -> tuple[Tensor, dict[str, Any]]:
    encoder, projections = build_motion(setup)
    network = build_network(setup, "restoration", "ours")
    upload = _upload(network, setup, repeats)
    levels, steps = sigmas(), whens(setup, "ours")
    results: list[Tensor] = []

    def run() -> None:
        biases = projections(encoder(inputs.flow))
        change = torch.zeros_like(inputs.latent, dtype=torch.float32)
        for step, when in enumerate(steps):
            kv = [t.to(setup.device, non_blocking=True) for t in kept[step]]
            latent = (inputs.latent + change).to(setup.dtype)
            change = change + (levels[step + 1] - levels[step]) * restore_step(network, latent, when, biases, kv)
        results[:] = [change]

    release_memory(setup.device)
    with peak_memory(setup.device) as peak:
        latency = time_runs(run, setup.device, repeats=repeats, warmup=1)
    record = {"network": "restoration", "latency": latency, "peak_memory_bytes": asdict(peak), "upload": upload}
    return results[0], record


def _sum(first: Latency, second: Latency) -> Latency:
    """Both phases one after the other; the percentiles' sums bound the percentiles of the sum from outside."""
    return Latency(
        first.median_ms + second.median_ms, first.p10_ms + second.p10_ms, first.p90_ms + second.p90_ms, first.n
    )


def _to_host(found: Sequence[Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
    pinned = found[0].is_cuda
    targets = buffers or [torch.empty(t.shape, dtype=t.dtype, pin_memory=pinned) for t in found]
    return [target.copy_(t, non_blocking=True) for target, t in zip(targets, found, strict=True)]


def _upload(network: nn.Module, setup: Setup, repeats: int) -> dict[str, Any]:
    """How long a network's weights take from (pinned) host memory to the device."""
    total = sum(p.numel() * p.element_size() for p in network.parameters())
    host = torch.randint(0, 255, (total,), dtype=torch.uint8)
    host = host.pin_memory() if setup.device.type == "cuda" else host
    target = torch.empty_like(host, device=setup.device)
    latency = time_runs(lambda: target.copy_(host, non_blocking=True), setup.device, repeats=repeats, warmup=1)
    return {"bytes": total, "latency": asdict(latency)}
