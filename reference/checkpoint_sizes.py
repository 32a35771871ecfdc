"""The sizes of random checkpoints, and the names and shapes of every tensor that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from livemoments.errors import UsageError
from livemoments.reference.config import TransformerConfig
from livemoments.reference.motion import MotionEncoder
from livemoments.reference.raft import RAFT

SCALING_FACTOR = 1.5305
SHIFT_FACTOR = 0.0609
"""SD3's VAE: ``latent = (sample - shift) * scaling``."""

# As in livemoments.types, which needs msgspec: a bare machine that benchmarks a GPU has torch and diffusers only.
FlowNetwork = Literal["raft", "dis"]

Component = Literal[
    "vae",
    "scheduler",
    "transformer",
    "transformer_ref",
    "motion_encoder",
    "raft",
    "prompt_embeds",
    "pooled_prompt_embeds",
]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""The parts of a checkpoint, by the names of :class:`~livemoments.reference.layout.CheckpointFiles`."""


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """Sizes of every network of a checkpoint (RAFT has one size only).

    ``sample_size`` is the training size in latent cells, which sets the scale of the position embedding;
    ``pos_embed_max_size`` is the largest tile's side in tokens. ``motion_widths`` are the output channels of the motion
    encoder's strided convolutions: as many as halve an image to the token grid. ``flow`` is ``dis`` where the
    checkpoint brings no RAFT.
    """

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    prompt_tokens: int
    joint_attention_dim: int
    pooled_projection_dim: int
    sample_size: int
    pos_embed_max_size: int
    motion_widths: tuple[int, ...]
    vae_channels: tuple[int, ...]
    vae_layers_per_block: int
    vae_norm_groups: int
    motion_depth: int = 12
    latent_channels: int = 16
    patch_size: int = 2
    vae_mid_attention: bool = True
    flow: FlowNetwork = "raft"

    @property
    def components(self) -> tuple[Component, ...]:
        """The parts that a checkpoint of these sizes has."""
        return tuple(part for part in COMPONENTS if part != "raft" or self.flow == "raft")

    @property
    def dim(self) -> int:
        """Width D of the token stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def token_px(self) -> int:
        """Side of the square of pixels that one token covers: the VAE's scale times the patch."""
        return 2 ** (len(self.vae_channels) - 1) * self.patch_size

    def check(self) -> None:
        """Refuse sizes that do not fit together.

        Raises:
            UsageError: naming the first contradiction.
        """
        if self.flow not in get_args(FlowNetwork):
            raise UsageError(f"'{self.flow}' estimates no flow", fix=f"use {' or '.join(get_args(FlowNetwork))}")
        if self.dim % 4 != 0:
            raise UsageError(f"a width of {self.dim} has no position embedding", fix="use a multiple of 4")
        if not self.motion_widths or self.motion_widths[-1] != self.dim:
            raise UsageError(f"motion_widths {self.motion_widths} must end with the transformer's width, {self.dim}")
        if 2 ** len(self.motion_widths) != self.token_px:
            raise UsageError(
                f"{len(self.motion_widths)} motion_widths shrink an image by {2 ** len(self.motion_widths)}, "
                f"but one token covers {self.token_px} pixels",
                fix=f"give {math.log2(self.token_px):g} motion_widths",
            )
        if self.motion_depth * 2 < self.num_layers:
            raise UsageError(f"a motion_depth of {self.motion_depth} serves {self.motion_depth * 2} blocks only")
        if bad := [width for width in self.vae_channels if width % self.vae_norm_groups]:
            raise UsageError(f"vae_channels {bad} are not multiples of vae_norm_groups ({self.vae_norm_groups})")
        if self.sample_size // self.patch_size > self.pos_embed_max_size:
            raise UsageError(f"sample_size {self.sample_size} is more tokens than pos_embed_max_size allows")

    def transformer(self) -> TransformerConfig:
        """Both MM-DiTs' configuration."""
        return TransformerConfig(
            num_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            attention_head_dim=self.attention_head_dim,
            patch_size=self.patch_size,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            joint_attention_dim=self.joint_attention_dim,
            caption_projection_dim=self.dim,
            pooled_projection_dim=self.pooled_projection_dim,
            sample_size=self.sample_size,
            pos_embed_max_size=self.pos_embed_max_size,
        )

    def vae(self) -> dict[str, Any]:
        """The VAE's ``config.json``, for diffusers' ``AutoencoderKL``."""
        levels = len(self.vae_channels)
        return {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(self.vae_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "force_upcast": True,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.vae_layers_per_block,
            "mid_block_add_attention": self.vae_mid_attention,
            "norm_num_groups": self.vae_norm_groups,
            "sample_size": self.sample_size * 2 ** (levels - 1),
            "scaling_factor": SCALING_FACTOR,
            "shift_factor": SHIFT_FACTOR,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }

    def shapes(self, component: Component) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a part's tensors, from the real network on the meta device: no memory is used.

        The prompts' embeddings have one tensor each, whose name is empty; the scheduler has none.
        """
        if component == "prompt_embeds":
            return {"": (1, self.prompt_tokens, self.joint_attention_dim)}
        if component == "pooled_prompt_embeds":
            return {"": (1, self.pooled_projection_dim)}
        if component == "scheduler":
            return {}
        with torch.device("meta"):
            network = self._build(component)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        if component == "transformer":  # the motion-guided attention's own weight (paper, equation 4)
            for block in range(self.num_layers):
                shapes[f"transformer_blocks.{block}.attn.processor.point_proj.weight"] = (self.dim, self.dim)
        return shapes

    def parameter_count(self, component: Component) -> int:
        """Trained values of a part; buffers (position table, running statistics) and shared copies are not counted."""
        buffers = ("pos_embed.pos_embed", "running_mean", "running_var", "num_batches_tracked")
        return sum(
            math.prod(shape)
            for name, shape in self.shapes(component).items()
            if not name.endswith(buffers) and ".norm3." not in name
        )

    def _build(self, component: Component) -> nn.Module:
        if component == "motion_encoder":
            return MotionEncoder(self.motion_widths, self.motion_depth)
        if component == "raft":
            return RAFT()
        from diffusers import AutoencoderKL, SD3Transformer2DModel  # here, so that the sizes are there without it

        if component == "vae":
            network: nn.Module = AutoencoderKL.from_config(self.vae())
            return network
        transformer: nn.Module = SD3Transformer2DModel(**self.transformer().as_dict())
        return transformer


SMALL = CheckpointSizes(
    num_layers=4,
    num_attention_heads=6,
    attention_head_dim=32,
    prompt_tokens=4,
    joint_attention_dim=32,
    pooled_projection_dim=32,
    sample_size=256,
    pos_embed_max_size=64,
    motion_widths=(64, 192),
    motion_depth=2,
    vae_channels=(32,),
    vae_layers_per_block=1,
    vae_norm_groups=8,
    vae_mid_attention=False,
    flow="dis",
    latent_channels=3,
    patch_size=4,
)
"""What ``tools/train_small`` trains: a VAE that keeps the image's size, and patches of 4 pixels."""

SIZES: dict[str, CheckpointSizes] = {
    "tiny": CheckpointSizes(
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        prompt_tokens=13,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        sample_size=32,
        pos_embed_max_size=48,
        motion_widths=(32, 48, 128, 128),
        vae_channels=(16, 32, 32, 32),
        vae_layers_per_block=1,
        vae_norm_groups=8,
    ),
    "mid": CheckpointSizes(
        num_layers=8,
        num_attention_heads=8,
        attention_head_dim=64,
        prompt_tokens=77,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        sample_size=64,
        pos_embed_max_size=96,
        motion_widths=(64, 128, 512, 512),
        vae_channels=(32, 64, 128, 128),
        vae_layers_per_block=1,
        vae_norm_groups=8,
    ),
    "sd3-medium": CheckpointSizes(
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        prompt_tokens=154,
        joint_attention_dim=4096,
        pooled_projection_dim=2048,
        sample_size=128,
        pos_embed_max_size=192,
        motion_widths=(512, 1024, 1536, 1536),
        vae_channels=(128, 256, 512, 512),
        vae_layers_per_block=2,
        vae_norm_groups=32,
    ),
}
"""The named sizes: ``tiny`` for tests, ``mid`` for benchmarks on a CPU, ``sd3-medium`` the published networks'."""
