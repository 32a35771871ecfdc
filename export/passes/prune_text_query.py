"""Take the text queries out of RestorationNet's last block, whose text outputs nobody reads.

Requires: a RestorationNet.
Ensures: the last block's ``add_q_proj`` is gone and its attention has image queries only. The velocity is unchanged:
each query attends on its own.
"""

from __future__ import annotations

from livemoments.export.conditioning import TextTable
from livemoments.export.mmdit import JointBlock, MMDiT
from livemoments.export.passes.report import PassReport, count_parameters
from livemoments.export.weights import WeightSource

NAME = "prune_text_query"


def prune_text_query(network: MMDiT, weights: WeightSource) -> PassReport:
    """Apply the pass; ``network`` and ``weights`` are changed in place."""
    before = count_parameters(network)
    index = len(network.transformer_blocks) - 1
    block = network.transformer_blocks[index]
    changed = isinstance(block, JointBlock) and drop_text_query(block, weights, f"transformer_blocks.{index}.")
    note = f"block {index} has image queries only" if changed else "the last block has no text query"
    return PassReport(NAME, changed, before, count_parameters(network), note)


def drop_text_query(block: JointBlock, weights: WeightSource, prefix: str) -> bool:
    """Remove a block's text query, projected or stored; whether there was one."""
    if block.attn.add_q_proj is not None:
        block.attn.add_q_proj = None
        weights.drop(f"{prefix}attn.add_q_proj.")
        return True
    if isinstance(block.text, TextTable) and "q" in block.text.names:
        block.text.names = tuple(name for name in block.text.names if name != "q")
        del block.text.q
        weights.drop(f"{prefix}text.q")
        return True
    return False
