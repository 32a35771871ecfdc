"""Floating-point operations of an MM-DiT as it is built, counted from its parts: two per multiply-add, products only.

Normalisation, activations and softmax are left out, as is usual; ``torch.utils.flop_counter`` leaves them out as well,
and the tests compare the two.
"""

from __future__ import annotations

from torch import nn

from livemoments.export.conditioning import Modulation
from livemoments.export.mmdit import JointBlock, MMDiT
from livemoments.pytorch.linears import EightBitLinear


def network_flops(network: MMDiT, *, batch: int, reference_tokens: int = 0) -> int:
    """Operations of one run.

    Args:
        network: with all, or after the passes with some of its parts.
        batch: tiles.
        reference_tokens: keys that guidance adds to each block's own; 0 for the reference branch.
    """
    image_tokens = network.pos_embed.grid[0] * network.pos_embed.grid[1]
    text_tokens = network.prompt_tokens
    dim = network.config.dim
    total = 0
    patch = network.pos_embed.proj
    total += 2 * batch * image_tokens * patch.weight.numel()
    if network.time_text_embed is not None:
        total += _linears(network.time_text_embed, rows=1)
    if network.context_embedder is not None:
        total += _linears(network.context_embedder, rows=text_tokens)  # one prompt for all tiles
    for block in network.transformer_blocks:
        if not isinstance(block, JointBlock):
            raise TypeError(f"cannot count a {type(block).__name__}")
        total += sum(_linears(m, rows=1) for m in (block.norm1, block.norm1_context) if isinstance(m, Modulation))
        attn = block.attn
        image_parts = [attn.to_q, attn.to_k, attn.to_v, attn.to_out, block.ff]
        text_parts = [attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.to_add_out, block.ff_context]
        total += sum(_linears(m, rows=batch * image_tokens) for m in image_parts if m is not None)
        total += sum(_linears(m, rows=batch * text_tokens) for m in text_parts if m is not None)
        if not block.keys_only:
            has_text_query = attn.add_q_proj is not None or (block.text is not None and "q" in block.text.names)
            queries = image_tokens + (text_tokens if has_text_query else 0)
            keys = image_tokens + text_tokens + reference_tokens
            total += 2 * 2 * batch * queries * keys * dim  # queries by keys, then weights by values
    if isinstance(network.norm_out, Modulation):
        total += _linears(network.norm_out, rows=1)
    if network.proj_out is not None:
        total += _linears(network.proj_out, rows=batch * image_tokens)
    return total


def projection_flops(projections: nn.Module, *, rows: int) -> int:
    """Operations of every linear layer below ``projections`` on ``rows`` rows each."""
    return _linears(projections, rows=rows)


def _linears(root: nn.Module, *, rows: int) -> int:
    return sum(2 * rows * m.weight.numel() for m in root.modules() if isinstance(m, nn.Linear | EightBitLinear))
