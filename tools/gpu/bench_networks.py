"""The two ways to restore a tile: upstream's and ours, with random weights made on the device.

Upstream's way computes the modulation from timestep and prompt in every step, runs the whole reference network and
projects the motion embeddings in every step. Ours runs the same modules after the export's passes: tables instead of
that computation, no unread parts, the motion projected once per tile.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from bench_path import ROOT
from torch import Tensor, nn

from livemoments.export.conditioning import modulate
from livemoments.export.mmdit import Guidance, JointProjections, KeyValue, MMDiT
from livemoments.export.passes.fold_conditioning import fold_conditioning
from livemoments.export.passes.fold_text import fold_text
from livemoments.export.passes.prune_reference_tail import prune_reference_tail
from livemoments.export.passes.prune_text_query import prune_text_query
from livemoments.export.weights import WeightSource
from livemoments.pytorch.attention import AttentionKind, find_kernel
from livemoments.pytorch.linears import LinearKind, replace_linears
from livemoments.reference.checkpoint_sizes import CheckpointSizes
from livemoments.reference.motion import MotionEncoder, embedding_index
from livemoments.reference.random_weights import fill_of

Way = Literal["upstream", "ours"]
Branch = Literal["reference", "restoration"]

STEPS = 6
_PLAIN_NORMAL = ("prompt", "pooled", "pos_embed.position")


@dataclass(frozen=True, slots=True)
class Setup:
    """What every case has in common.

    Attributes:
        sizes: of the networks.
        tile_px: the tile's side.
        device: where everything runs.
        dtype: of weights and activations.
        batch: tiles at once.
        seed: of weights and inputs.
        attention: which kernel computes the transformers' attention.
        linears: 8-bit products in the transformers' blocks.
    """

    sizes: CheckpointSizes
    tile_px: int
    device: torch.device
    dtype: torch.dtype
    batch: int = 1
    seed: int = 0
    attention: AttentionKind = "auto"
    linears: LinearKind | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        side = self.tile_px // self.sizes.token_px
        return side, side

    @property
    def image_tokens(self) -> int:
        """N, the image tokens of a tile."""
        return self.grid[0] * self.grid[1]

    @property
    def reference_tokens(self) -> int:
        """Keys that the reference adds to each block: its image and text tokens."""
        return self.image_tokens + self.sizes.prompt_tokens


def sigmas(steps: int = STEPS) -> list[float]:
    """Noise levels of the sampled steps and the final 0.

    As ``livemoments.schedule``, which needs packages that a machine with PyTorch alone does not have; a test compares.
    """
    indices = [int(float(i)) for i in torch.linspace(923, 999, steps, dtype=torch.float64)]
    linear = [(1000 - index) / 1000 for index in indices]
    return [3 * s / (1 + 2 * s) for s in linear] + [0.0]


def policy_sources(policy: str, steps: int = STEPS) -> list[int]:
    """For each step, the step at which its reference keys are made: as ``livemoments.types.ReferencePolicy``."""
    if policy in ("per-step", "phase-split"):
        return list(range(steps))
    if policy == "frozen":
        return [0] * steps
    interval = int(policy.removeprefix("every-"))
    return [step - step % interval for step in range(steps)]


def randomise(module: nn.Module, component: str, setup: Setup) -> None:
    """Fill parameters and buffers on their device, each from a seed of its own name: scales of trained networks."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        generator = torch.Generator(setup.device).manual_seed(setup.seed ^ zlib.crc32(f"{component}/{name}".encode()))
        tensor.data.normal_(generator=generator)
        if name in _PLAIN_NORMAL:
            continue
        fill = fill_of(component, name, tensor.shape)
        mean = torch.as_tensor(fill.mean, device=setup.device, dtype=tensor.dtype)
        drawn = tensor.data.abs_() if fill.spread else tensor.data
        drawn.mul_(fill.std).add_(mean)


def build_network(setup: Setup, branch: Branch, way: Way) -> MMDiT:
    """One MM-DiT on the device; in our way folded and pruned by the export's passes."""
    component = "transformer_ref" if branch == "reference" else "transformer"
    with torch.device("meta"):
        network = MMDiT(setup.sizes.transformer(), setup.grid, setup.sizes.prompt_tokens).to(setup.dtype)
    network = network.to_empty(device=setup.device).eval().requires_grad_(False)
    randomise(network, component, setup)
    kernel = find_kernel(setup.attention, setup.device)
    for part in network.modules():
        if isinstance(part, JointProjections):
            part.kernel = kernel
    if way == "upstream":
        return network
    weights = WeightSource(dict(network.state_dict()), ROOT)
    with torch.device(setup.device), torch.no_grad():  # the passes make their tensors on the default device
        fold_conditioning(network, weights, [1000 * sigma for sigma in sigmas()[:-1]])
        fold_text(network, weights)
        (prune_reference_tail if branch == "reference" else prune_text_query)(network, weights)
        if setup.linears is not None:
            replace_linears(network.transformer_blocks, setup.linears)
    return network.requires_grad_(False)


class MotionProjections(nn.Module):
    """``point_proj`` of every block (paper, equation 4)."""

    def __init__(self, blocks: int, dim: int) -> None:
        super().__init__()
        self.point_proj = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(blocks))

    def forward(self, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """(B, N, D) embeddings of the motion encoder to one (B, N, D) bias per block."""
        chosen = (embeddings[embedding_index(block)] for block in range(len(self.point_proj)))
        return [
            proj(F.layer_norm(motion, motion.shape[-1:])) for proj, motion in zip(self.point_proj, chosen, strict=True)
        ]


def build_motion(setup: Setup) -> tuple[MotionEncoder, MotionProjections]:
    """The motion encoder and the projections on the device."""
    sizes = setup.sizes
    with torch.device("meta"):
        encoder = MotionEncoder(sizes.motion_widths, sizes.motion_depth).to(setup.dtype)
        projections = MotionProjections(sizes.num_layers, sizes.dim).to(setup.dtype)
    for module, component in ((encoder, "motion_encoder"), (projections, "transformer")):
        module.to_empty(device=setup.device).eval().requires_grad_(False)
        randomise(module, component, setup)
    return encoder, projections


@dataclass(frozen=True, slots=True)
class Inputs:
    """One tile's inputs: the noised latent, the reference latent (B, 16, h, w), the flow (B, 2, H, W)."""

    latent: Tensor
    reference: Tensor
    flow: Tensor


def draw_inputs(setup: Setup) -> Inputs:
    """Random inputs, the same for every case of a run."""
    generator = torch.Generator(setup.device).manual_seed(setup.seed)
    side = setup.grid[0] * setup.sizes.patch_size

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=setup.device, generator=generator).to(setup.dtype)

    channels = setup.sizes.latent_channels
    latent, reference = (draw(setup.batch, channels, side, side) for _ in range(2))
    return Inputs(latent, reference, 4 * draw(setup.batch, 2, setup.tile_px, setup.tile_px))


def reference_keys(network: MMDiT, latent: Tensor, when: Tensor) -> list[Tensor]:
    """Keys and values of every block, in pairs; the whole network runs, as far as it was not pruned."""
    return [tensor for pair in network(latent, when)[1] for tensor in pair]


def restore_step(
    network: MMDiT, latent: Tensor, when: Tensor, biases: Sequence[Tensor], kv: Sequence[Tensor]
) -> Tensor:
    """The velocity, as ``MMDiT.forward`` computes it, without holding on to the blocks' own keys and values."""
    if network.norm_out is None or network.proj_out is None:
        raise ValueError("the restoration network has no output")
    conditioning = when.reshape(1)
    if network.time_text_embed is not None and network.pooled is not None:
        conditioning = network.time_text_embed(conditioning, network.pooled)
    image = network.pos_embed(latent)
    text = network.embedded_prompt().expand(latent.shape[0], -1, -1)
    for index, block in enumerate(network.transformer_blocks):
        guidance = Guidance(KeyValue(kv[2 * index], kv[2 * index + 1]), biases[index])
        image, text, _ = block(image, text, conditioning, guidance)
    rows = network.norm_out(conditioning)
    return network._unpatchify(network.proj_out(modulate(image, scale=rows.scale_msa, shift=rows.shift_msa)))
