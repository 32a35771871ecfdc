"""Reduce ReferenceNet's last block to what is read of it: its keys and values.

Requires: a ReferenceNet whose conditioning is folded.
Ensures: the last block is its two norms (shift and scale only) and the projections to keys and values; its attention,
its feed-forwards, ``norm_out`` and ``proj_out`` are gone. Keys and values are bit-identical; there is no velocity.
"""

from __future__ import annotations

from livemoments.export.conditioning import ModulationTable
from livemoments.export.mmdit import JointBlock, MMDiT
from livemoments.export.passes.fold_text import keep_rows
from livemoments.export.passes.prune_text_query import drop_text_query
from livemoments.export.passes.report import PassReport, count_parameters
from livemoments.export.weights import WeightSource

NAME = "prune_reference_tail"
_READ_ROWS = ["shift_msa", "scale_msa"]


def prune_reference_tail(network: MMDiT, weights: WeightSource) -> PassReport:
    """Apply the pass; ``network`` and ``weights`` are changed in place.

    Raises:
        ValueError: the conditioning is not folded yet.
    """
    before = count_parameters(network)
    index = len(network.transformer_blocks) - 1
    block = network.transformer_blocks[index]
    if not isinstance(block, JointBlock) or block.keys_only:
        return PassReport(NAME, False, before, before, "the last block is pruned already")
    if not isinstance(block.norm1, ModulationTable):
        raise ValueError("prune_reference_tail needs fold_conditioning first")
    prefix = f"transformer_blocks.{index}."
    kept = keep_rows(block.norm1, _READ_ROWS, weights, f"{prefix}norm1")
    if kept is not None:
        block.norm1 = kept
    drop_text_query(block, weights, prefix)
    block.attn.to_q = block.attn.to_out = block.ff = None
    block.keys_only = True
    network.norm_out = network.proj_out = None
    weights.drop(f"{prefix}attn.to_q.", f"{prefix}attn.to_out.", f"{prefix}ff.", "norm_out.", "proj_out.")
    after = count_parameters(network)
    return PassReport(NAME, True, before, after, f"block {index} ends with its keys and values")
