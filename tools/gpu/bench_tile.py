"""One tile through the sampler, under a reference policy, in one of the modes: eager, compiled, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch._dynamo
from bench_flops import network_flops, projection_flops
from bench_networks import (
    STEPS,
    Inputs,
    Setup,
    Way,
    build_motion,
    build_network,
    policy_sources,
    reference_keys,
    restore_step,
    sigmas,
)
from torch import Tensor

from livemoments.pytorch.execution import Graphed, compile_blocks

Mode = Literal["eager", "compile", "graphs", "compile+graphs"]


class Tile:
    """Both networks, the motion projections and one tile's inputs, ready to run.

    Args:
        setup: sizes, device, type.
        way: upstream's or ours.
        mode: how the networks run.
        inputs: of the tile.
        backend: of ``torch.compile``.
    """

    def __init__(self, setup: Setup, way: Way, mode: Mode, inputs: Inputs, *, backend: str = "inductor") -> None:
        self.setup = setup
        self.way: Way = way
        self.inputs = inputs
        self.encoder, self.projections = build_motion(setup)
        self.reference = build_network(setup, "reference", way)
        self.restoration = build_network(setup, "restoration", way)
        self._whens = whens(setup, way)
        self._motion_step: Callable[..., Sequence[Tensor]] = self._run_motion
        self._reference_step: Callable[..., Sequence[Tensor]] = self._run_reference
        self._restoration_step: Callable[..., Sequence[Tensor]] = self._run_restoration
        if "compile" in mode:
            torch._dynamo.reset()  # another way's blocks are other graphs, and the cache counts them all
            for network in (self.reference, self.restoration):
                compile_blocks(network, backend)
        if "graphs" in mode:
            self.capture()

    def _run_reference(self, latent: Tensor, when: Tensor) -> Sequence[Tensor]:
        return reference_keys(self.reference, latent, when)

    def _run_restoration(self, latent: Tensor, when: Tensor, *rest: Tensor) -> Sequence[Tensor]:
        count = len(rest) - 2 * self.setup.sizes.num_layers
        motion, kv = rest[:count], rest[count:]
        biases = motion if self.way == "ours" else self.projections(motion)
        return (restore_step(self.restoration, latent, when, biases, kv),)

    def capture(self) -> None:
        """Run everything as CUDA graphs from now on; one graph's outputs are the next one's static inputs."""
        when, other = self._whens[0].clone(), self._whens[0].clone()
        self._motion_step = Graphed(self._run_motion, (self.inputs.flow.clone(),))
        motion = self._motion_step(self.inputs.flow)
        self._reference_step = Graphed(self._run_reference, (self.inputs.reference.clone(), when))
        kv = self._reference_step(self.inputs.reference, when)
        self._restoration_step = Graphed(self._run_restoration, (self.inputs.latent.clone(), other, *motion, *kv))

    def _run_motion(self, flow: Tensor) -> Sequence[Tensor]:
        embeddings = self.encoder(flow)
        return self.projections(embeddings) if self.way == "ours" else embeddings

    def motion(self) -> Sequence[Tensor]:
        """What a step takes of the motion: the embeddings in upstream's way, in ours the projected biases."""
        return self._motion_step(self.inputs.flow)

    def reference_step(self, step: int) -> Sequence[Tensor]:
        """Keys and values at one step's timestep."""
        return self._reference_step(self.inputs.reference, self._whens[step])

    def restoration_step(self, latent: Tensor, step: int, motion: Sequence[Tensor], kv: Sequence[Tensor]) -> Tensor:
        """The velocity of one step."""
        return self._restoration_step(latent, self._whens[step], *motion, *kv)[0]

    def run(self, policy: str) -> Tensor:
        """What all steps together add to the latent, float32: the result without what went in unchanged."""
        levels, sources = sigmas(), policy_sources(policy)
        motion, change = self.motion(), torch.zeros_like(self.inputs.latent, dtype=torch.float32)
        kv: Sequence[Tensor] = ()
        for step in range(STEPS):
            if step == 0 or sources[step] != sources[step - 1]:
                kv = self.reference_step(sources[step])
            latent = (self.inputs.latent + change).to(self.setup.dtype)
            change = change + (levels[step + 1] - levels[step]) * self.restoration_step(latent, step, motion, kv)
        return change

    def flops(self, policy: str) -> int:
        """Operations of :meth:`run`, the motion encoder's convolutions included."""
        setup = self.setup
        runs = len(set(policy_sources(policy)))
        rows = setup.batch * setup.image_tokens
        projections = projection_flops(self.projections, rows=rows) * (1 if self.way == "ours" else STEPS)
        reference = network_flops(self.reference, batch=setup.batch)
        restoration = network_flops(self.restoration, batch=setup.batch, reference_tokens=setup.reference_tokens)
        return self._motion_flops() + projections + runs * reference + STEPS * restoration

    def _motion_flops(self) -> int:
        total, side = 0, self.setup.tile_px
        for module in self.encoder.modules():
            if isinstance(module, torch.nn.Conv2d):
                side //= module.stride[0]
                total += 2 * self.setup.batch * side * side * module.weight.numel()
        return total


def whens(setup: Setup, way: Way) -> list[Tensor]:
    """What tells a network its step: the timestep in upstream's way, the table's row in ours."""
    if way == "ours":
        return [torch.tensor(step, device=setup.device) for step in range(STEPS)]
    return [torch.tensor(1000 * sigma, device=setup.device) for sigma in sigmas()[:-1]]
