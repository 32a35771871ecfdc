"""The networks of the second half, exactly as the reference builds them, with what training needs around them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from patches import begin_looking, begin_with_basis, beginning_of
from torch import Tensor, nn
from vae import LATENT_STD

from livemoments.reference import mmdit
from livemoments.reference.checkpoint_sizes import CheckpointSizes
from livemoments.reference.mmdit import BlockGuidance, ReferenceNet, RestorationNet
from livemoments.reference.motion import MotionEncoder, embedding_index

_BEGIN_AT_NOTHING = ("norm1.linear", "norm1_context.linear", "norm_out.linear", "point_proj")


class LiveMomentsModel(nn.Module):
    """ReferenceNet, RestorationNet, motion encoder and the empty prompt as learned constants.

    Args:
        sizes: of all of them.
        latent_std: the deviation of the latents that they will see.
    """

    def __init__(self, sizes: CheckpointSizes, latent_std: float = LATENT_STD) -> None:
        super().__init__()
        config = sizes.transformer()
        self.reference_net, self.restoration_net = ReferenceNet(config), RestorationNet(config)
        self.motion_encoder = MotionEncoder(sizes.motion_widths, sizes.motion_depth)
        self.prompt = nn.Parameter(torch.randn(1, sizes.prompt_tokens, sizes.joint_attention_dim))
        self.pooled = nn.Parameter(torch.randn(1, sizes.pooled_projection_dim))
        transformer = self.restoration_net.transformer
        beginning = beginning_of(transformer.pos_embed, latent_std)
        _initialize(transformer)
        begin_with_basis(transformer, beginning)
        # Both begin alike, as upstream's begin from the same SD3 weights: features that mean the same can be compared.
        alike = transformer.state_dict()
        own = self.reference_net.transformer.state_dict()
        self.reference_net.transformer.load_state_dict({name: alike[name] for name in own})
        for network, at_itself in ((self.reference_net, True), (self.restoration_net, False)):
            for block in network.transformer.transformer_blocks:
                begin_looking(block.attn, beginning, at_itself=at_itself)

    @contextlib.contextmanager
    def placed(self, row: int, column: int) -> Iterator[None]:
        """Both networks see what they are given as the part of a largest tile that begins at this token.

        As they are, a small tile lies in the middle of the position embedding: trained on those alone, they would not
        know the places of a large one.
        """
        embeds = [network.transformer.pos_embed for network in (self.reference_net, self.restoration_net)]

        def positions(embed: Any, height: int, width: int) -> Tensor:
            rows, columns, side = height // embed.patch_size, width // embed.patch_size, embed.pos_embed_max_size
            table: Tensor = embed.pos_embed.reshape(1, side, side, -1)
            return table[:, row : row + rows, column : column + columns].flatten(1, 2)

        for embed in embeds:
            embed.cropped_pos_embed = functools.partial(positions, embed)
        try:
            yield
        finally:
            for embed in embeds:
                del embed.cropped_pos_embed

    def forward(self, z: Tensor, z_ref: Tensor, flow: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, C, h, w), as :func:`livemoments.reference.pipeline.sample` computes it.

        Args:
            z, z_ref: (B, C, h, w).
            flow: (B, 2, H, W) in pixels.
            t: (B,), from 0 to 0.2.
        """
        timestep = t * 1000
        prompt = self.prompt.expand(len(z), -1, -1)
        pooled = self.pooled.expand(len(z), -1)
        kv = self.reference_net(z_ref, timestep, prompt, pooled)
        motion = self.motion_encoder(flow)
        guidance = [BlockGuidance(block, motion[embedding_index(index)]) for index, block in enumerate(kv)]
        return self.restoration_net(z, timestep, prompt, pooled, guidance)


def _initialize(transformer: nn.Module) -> None:
    """Xavier for linear layers; nothing for what modulates (adaLN-zero, Peebles and Xie
    2023), for the output and for the motion bias. Keys begin as queries, so that attention begins by looking at what is
    alike in place and content: from unrelated keys, 1000 steps had not found the reference.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith(_BEGIN_AT_NOTHING):
                nn.init.zeros_(module.weight)
    for name, module in transformer.named_modules():
        if name.endswith(".attn.to_k"):
            module.load_state_dict(transformer.get_submodule(f"{name[:-1]}q").state_dict())


@contextlib.contextmanager
def mixed_precision() -> Iterator[None]:
    """bfloat16 products, attention's among them, which is written out: on CPUs the backward pass of PyTorch 2.13's own
    takes 60 % of a step with 256 tokens, and this whole step half as long.
    """
    plain = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (tensor.bfloat16() for tensor in (query * query.shape[-1] ** -0.5, key, value))
        return torch.matmul(torch.softmax(query @ key.transpose(-1, -2), dim=-1), value)

    mmdit.F.scaled_dot_product_attention = attend
    try:
        with torch.autocast("cpu", torch.bfloat16):
            yield
    finally:
        mmdit.F.scaled_dot_product_attention = plain
