"""The MM-DiT as it is exported: one network class for both branches, written so that graph passes can take parts out.

Architecture: SD3 (P. Esser et al., "Scaling Rectified Flow Transformers", 2024, section 4) and, for the restoration
branch, LiveMoments' motion-guided attention (paper, equations 3 and 4). Parameter names are those of diffusers'
``SD3Transformer2DModel``, so a checkpoint's tensors and an exported graph's initializers have the same names.

Three things differ from diffusers' modules, none of them beyond rounding:

* All tiles of a batch share prompt and timestep, so the modulation is one row per block, not one per tile, and a
  modulated layer norm is one operation with ``1 + scale`` as its weight and ``shift`` as its bias.
* What is conditioned on is opaque: a timestep as built, an index into tables after ``passes.fold_conditioning``.
* Unread parts may be absent (``None``) after ``passes.prune``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livemoments.export.conditioning import (
    CONTINUOUS_ROWS,
    ZERO_ROWS,
    Modulation,
    ModulationRows,
    ModulationTable,
    PatchEmbedding,
    TextTable,
    TimeTextEmbedding,
    modulate,
)
from livemoments.reference.config import TransformerConfig


class KeyValue(NamedTuple):
    """One block's keys and values before the split into heads, (B, N + T, D): image tokens first, then text."""

    key: Tensor
    value: Tensor


class Guidance(NamedTuple):
    """What guides one restoration block: the reference's keys and values, and the projected motion (B, N, D)."""

    reference: KeyValue
    motion_bias: Tensor


class JointProjections(nn.Module):
    """Projections of the joint attention, under diffusers' names.

    Attributes:
        kernel: computes the attention of heads; PyTorch's own choice, unless an engine puts another one here.
    """

    kernel: Callable[[Tensor, Tensor, Tensor], Tensor]
    to_q: nn.Linear | None
    add_q_proj: nn.Linear | None
    to_out: nn.ModuleList | None
    to_add_out: nn.Linear | None

    def __init__(self, dim: int, heads: int, *, last: bool) -> None:
        super().__init__()
        self.heads = heads
        self.kernel = F.scaled_dot_product_attention
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.to_add_out = None if last else nn.Linear(dim, dim)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q, D), (B, S, D), (B, S, D) to (B, Q, D); scale 1/sqrt(head size)."""
        q, k, v = (split_heads(x, self.heads) for x in (query, key, value))
        return merge_heads(self.kernel(q, k, v))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, D) to (B, heads, S, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, S, D / heads) to (B, S, D)."""
    return x.transpose(1, 2).flatten(2)


class _Gelu(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, tanh-approximated GELU, linear; 4 D wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": _Gelu(dim, 4 * dim), "2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        return self.net["2"](self.net["0"](x))


class JointBlock(nn.Module):
    """One MM-DiT block.

    Args:
        config: the network's sizes.
        last: the last block, whose text stream ends in its keys and values (diffusers' ``context_pre_only``).

    Attributes:
        keys_only: set by ``passes.prune_reference_tail``: the block stops after its keys and values.
        text: set by ``passes.fold_text`` in the first block: replaces the text's norm and projections.
    """

    ff: FeedForward | None
    ff_context: FeedForward | None
    norm1: Modulation | ModulationTable
    norm1_context: Modulation | ModulationTable | None
    text: TextTable | None

    def __init__(self, config: TransformerConfig, *, last: bool) -> None:
        super().__init__()
        dim = config.dim
        self.last = last
        self.keys_only = False
        self.text = None
        self.norm1 = Modulation(dim, ZERO_ROWS)
        self.norm1_context = Modulation(dim, CONTINUOUS_ROWS if last else ZERO_ROWS)
        self.attn = JointProjections(dim, config.num_attention_heads, last=last)
        self.ff = FeedForward(dim)
        self.ff_context = None if last else FeedForward(dim)

    def forward(
        self, image: Tensor, text: Tensor, conditioning: Tensor, guidance: Guidance | None
    ) -> tuple[Tensor, Tensor, KeyValue]:
        """image (B, N, D), text (B, T, D) to the next two and this block's own keys and values."""
        attn = self.attn
        rows = self.norm1(conditioning)
        text_rows = ModulationRows() if self.norm1_context is None else self.norm1_context(conditioning)
        normed = modulate(image, scale=rows.scale_msa, shift=rows.shift_msa)
        text_query, text_key, text_value = self._text_projections(text, text_rows, conditioning)
        own = KeyValue(
            torch.cat([attn.to_k(normed), text_key], dim=1), torch.cat([attn.to_v(normed), text_value], dim=1)
        )
        if self.keys_only or attn.to_q is None or attn.to_out is None or self.ff is None:
            return image, text, own
        query = attn.to_q(normed)
        if text_query is not None:
            query = torch.cat([query, text_query], dim=1)
        mixed = attn.attend(query, *_with_guidance(own, guidance, image.shape[1]))
        image_mixed = mixed if text_query is None else mixed[:, : image.shape[1]]
        image = image + rows.gate_msa * attn.to_out[0](image_mixed)
        image = image + rows.gate_mlp * self.ff(modulate(image, scale=rows.scale_mlp, shift=rows.shift_mlp))
        if attn.to_add_out is not None and self.ff_context is not None:
            text = text + text_rows.gate_msa * attn.to_add_out(mixed[:, image.shape[1] :])
            normed = modulate(text, scale=text_rows.scale_mlp, shift=text_rows.shift_mlp)
            text = text + text_rows.gate_mlp * self.ff_context(normed)
        return image, text, own

    def _text_projections(
        self, text: Tensor, rows: ModulationRows, conditioning: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        attn = self.attn
        if self.text is not None:
            query, key, value = self.text(conditioning)
            wide = (text.shape[0], -1, -1)
            return None if query is None else query.expand(*wide), key.expand(*wide), value.expand(*wide)
        normed = modulate(text, scale=rows.scale_msa, shift=rows.shift_msa)
        query = None if attn.add_q_proj is None else attn.add_q_proj(normed)
        return query, attn.add_k_proj(normed), attn.add_v_proj(normed)


def _with_guidance(own: KeyValue, guidance: Guidance | None, image_tokens: int) -> tuple[Tensor, Tensor]:
    """Keys and values in the order [image, text, reference image, reference text] (equations 3 and 4)."""
    if guidance is None:
        return own
    key, value = guidance.reference
    moved = key[:, :image_tokens] + guidance.motion_bias
    return torch.cat([own.key, moved, key[:, image_tokens:]], dim=1), torch.cat([own.value, value], dim=1)


class MMDiT(nn.Module):
    """ReferenceNet or RestorationNet for one grid of tokens.

    Args:
        config: the network's sizes.
        grid: rows and columns of image tokens.
        prompt_tokens: T, the prompt's length.

    Attributes:
        folded: the conditioning was folded: ``when`` is an index into the schedule's points, else a timestep.
        prompt: the prompt's embeddings (1, T, J), ``pooled`` (1, P): constants, folded away by the passes, which leave
            ``context``, the embedded prompt (1, T, D).
    """

    time_text_embed: TimeTextEmbedding | None
    context_embedder: nn.Linear | None
    prompt: nn.Parameter | None
    pooled: nn.Parameter | None
    context: nn.Parameter | None
    norm_out: Modulation | ModulationTable | None
    proj_out: nn.Linear | None

    def __init__(self, config: TransformerConfig, grid: tuple[int, int], prompt_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.prompt_tokens = prompt_tokens
        self.folded = False
        self.pos_embed = PatchEmbedding(config, grid)
        self.time_text_embed = TimeTextEmbedding(config.pooled_projection_dim, config.dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, config.dim)
        self.prompt = nn.Parameter(torch.empty(1, prompt_tokens, config.joint_attention_dim))
        self.pooled = nn.Parameter(torch.empty(1, config.pooled_projection_dim))
        self.context = None
        last = config.num_layers - 1
        self.transformer_blocks = nn.ModuleList(JointBlock(config, last=i == last) for i in range(last + 1))
        self.norm_out = Modulation(config.dim, CONTINUOUS_ROWS)
        self.proj_out = nn.Linear(config.dim, config.patch_size**2 * config.out_channels)

    def forward(
        self, latent: Tensor, when: Tensor, guidance: Sequence[Guidance] | None = None
    ) -> tuple[Tensor | None, list[KeyValue]]:
        """Run the network.

        Args:
            latent: (B, 16, h, w), h and w the grid times the patch size.
            when: (), the timestep (1000 x sigma), or after folding the point's index, int64.
            guidance: one per block for the restoration branch.

        Returns:
            The velocity (B, 16, h, w), ``None`` where the output was pruned; every block's own keys and values.
        """
        conditioning = when.reshape(1)
        if self.time_text_embed is not None and self.pooled is not None:
            conditioning = self.time_text_embed(conditioning, self.pooled)
        image = self.pos_embed(latent)
        text = self.embedded_prompt().expand(latent.shape[0], -1, -1)
        kept = []
        for index, block in enumerate(self.transformer_blocks):
            guide = None if guidance is None else guidance[index]
            image, text, own = block(image, text, conditioning, guide)
            kept.append(own)
        return self.velocity(image, conditioning), kept

    def velocity(self, image: Tensor, conditioning: Tensor) -> Tensor | None:
        """The last block's image tokens (B, N, D) to the velocity (B, C, h, w), ``None`` where that was pruned."""
        if self.norm_out is None or self.proj_out is None:
            return None
        rows = self.norm_out(conditioning)
        image = modulate(image, scale=rows.scale_msa, shift=rows.shift_msa)
        return self._unpatchify(self.proj_out(image))

    def embedded_prompt(self) -> Tensor:
        """The text tokens that enter the first block, (1, T, D)."""
        if self.context is not None:
            return self.context
        if self.context_embedder is None or self.prompt is None:
            raise ValueError("the network has neither a prompt nor its embedding")
        return self.context_embedder(self.prompt)

    def _unpatchify(self, tokens: Tensor) -> Tensor:
        """(B, N, p p C) to (B, C, h, w), by tensors of rank 4 at most (Core ML allows 5)."""
        rows, columns = self.pos_embed.grid
        patch, channels = self.config.patch_size, self.config.out_channels
        height, width = rows * patch, columns * patch
        lines = tokens.reshape(-1, columns, patch, patch * channels)  # (B rows, columns, patch y, patch x C)
        pixels = lines.transpose(1, 2).reshape(-1, height, width, channels)  # (B, h, w, C)
        return pixels.permute(0, 3, 1, 2)
