"""ReferenceNet and RestorationNet: diffusers' SD3 transformer with attention of our own (paper, sections 3.3 and 3.4).

ReferenceNet is a plain SD3 MM-DiT run on the clean reference latent; what is kept are each block's keys and values.
RestorationNet attends over its own tokens and those (equation 3), with motion embeddings added to the reference image
keys (equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from livemoments.reference.config import TransformerConfig


class BlockKV(NamedTuple):
    """One block's keys and values before the split into heads: image (B, N, D), text (B, T, D)."""

    image_key: Tensor
    image_value: Tensor
    text_key: Tensor
    text_value: Tensor


class BlockGuidance(NamedTuple):
    """What one RestorationNet block is guided by: the reference's keys and values, the motion embedding (B, N, D)."""

    reference: BlockKV
    motion: Tensor


class KeyValueRecorder:
    """ReferenceNet's attention: the ordinary joint attention, which also keeps its projections in ``recorded``."""

    def __init__(self) -> None:
        self.recorded: BlockKV | None = None

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """image (B, N, D), text (B, T, D) to the attention's outputs of the same shapes."""
        own = _keys_values(attn, hidden_states, encoder_hidden_states)
        self.recorded = own
        key = torch.cat([own.image_key, own.text_key], dim=1)
        value = torch.cat([own.image_value, own.text_value], dim=1)
        return _joint_attention(attn, hidden_states, encoder_hidden_states, key, value)


class MotionGuidedAttention(nn.Module):
    """RestorationNet's attention (equation 4); owns ``point_proj``, which projects the motion embedding."""

    def __init__(self, index: int, dim: int) -> None:
        super().__init__()
        self.index = index
        self.point_proj = nn.Linear(dim, dim, bias=False)

    # diffusers reads this signature to see which joint_attention_kwargs it may pass on
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        guidance: Sequence[BlockGuidance] = (),
    ) -> tuple[Tensor, Tensor]:
        """As above, with each block's guidance, of which this one takes its own."""
        reference, motion = guidance[self.index]
        own = _keys_values(attn, hidden_states, encoder_hidden_states)
        bias = self.point_proj(F.layer_norm(motion, motion.shape[-1:]))
        key = torch.cat([own.image_key, own.text_key, reference.image_key + bias, reference.text_key], dim=1)
        value = torch.cat([own.image_value, own.text_value, reference.image_value, reference.text_value], dim=1)
        return _joint_attention(attn, hidden_states, encoder_hidden_states, key, value)


def _keys_values(attn: Any, image: Tensor, text: Tensor) -> BlockKV:
    return BlockKV(attn.to_k(image), attn.to_v(image), attn.add_k_proj(text), attn.add_v_proj(text))


def _joint_attention(attn: Any, image: Tensor, text: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [image, text] (B, N + T, D) over the given keys and values (B, S, D); scale 1/sqrt(head size)."""
    query = torch.cat([attn.to_q(image), attn.add_q_proj(text)], dim=1)

    def split(tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))
    mixed = mixed.transpose(1, 2).flatten(2)
    image_out, text_out = mixed.split([image.shape[1], text.shape[1]], dim=1)
    image_out = attn.to_out[0](image_out)
    return image_out, text_out if attn.context_pre_only else attn.to_add_out(text_out)


class ReferenceNet(nn.Module):
    """The reference branch.

    Attributes:
        transformer: the SD3 transformer, whose state dict is upstream's ``transformer_ref``.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = SD3Transformer2DModel(**config.as_dict())
        self._recorders = [KeyValueRecorder() for _ in range(config.num_layers)]
        for block, recorder in zip(self.transformer.transformer_blocks, self._recorders, strict=True):
            block.attn.set_processor(recorder)

    def forward(self, latent: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor) -> list[BlockKV]:
        """Keys and values of every block.

        Args:
            latent: (B, 16, h, w), the clean reference latent.
            timestep: (B,), 1000 x sigma.
            prompt: (B, T, J).
            pooled: (B, P).
        """
        self.transformer(latent, prompt, pooled, timestep, return_dict=False)
        kept = []
        for recorder in self._recorders:
            if recorder.recorded is None:
                raise RuntimeError("a block did not run")
            kept.append(recorder.recorded)
            recorder.recorded = None  # or the keys of the last tile stay in memory
        return kept


class RestorationNet(nn.Module):
    """The main branch.

    Attributes:
        transformer: the SD3 transformer with motion-guided attention; its state dict is upstream's ``transformer``.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = SD3Transformer2DModel(**config.as_dict())
        for index, block in enumerate(self.transformer.transformer_blocks):
            block.attn.set_processor(MotionGuidedAttention(index, config.dim))

    def forward(
        self, latent: Tensor, timestep: Tensor, prompt: Tensor, pooled: Tensor, guidance: Sequence[BlockGuidance]
    ) -> Tensor:
        """The velocity dz/dt, (B, 16, h, w).

        Args:
            latent: (B, 16, h, w), z_t.
            timestep: (B,), 1000 x sigma.
            prompt: (B, T, J).
            pooled: (B, P).
            guidance: one per block.
        """
        kwargs = {"guidance": guidance}
        out = self.transformer(latent, prompt, pooled, timestep, joint_attention_kwargs=kwargs, return_dict=False)
        velocity: Tensor = out[0]
        return velocity
