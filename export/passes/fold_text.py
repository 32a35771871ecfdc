"""Fold the embedded prompt, and the first block's text projections of it, into constants.

Requires: :func:`fold_conditioning` was applied; ``prompt`` among the weights.
Ensures: ``context_embedder`` and ``prompt`` are gone, ``context`` (1, T, D) stands for them. Where that stores fewer
elements than it removes (points x T < D, so not for the longest prompts), the first block's text queries, keys and
values are a ``TextTable`` and the rows of its text norm that only they read are gone. Outputs change by rounding only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from livemoments.export.conditioning import ModulationRows, ModulationTable, TextTable, modulate
from livemoments.export.mmdit import JointBlock, MMDiT
from livemoments.export.passes.report import PassReport, count_parameters
from livemoments.export.weights import WeightSource

NAME = "fold_text"
_BLOCK = "transformer_blocks.0."


def fold_text(network: MMDiT, weights: WeightSource) -> PassReport:
    """Apply the pass; ``network`` and ``weights`` are changed in place.

    Raises:
        ValueError: the conditioning is not folded yet.
    """
    before = count_parameters(network)
    if not network.folded:
        raise ValueError("fold_text needs fold_conditioning first")
    if network.context_embedder is None:
        return PassReport(NAME, False, before, before, "the prompt is folded already")
    like = network.context_embedder.weight
    embedder = weights.materialise(network.context_embedder, "context_embedder.")
    context = embedder(weights.get("prompt", torch.float64))
    network.context = _parameter(context, like)
    network.context_embedder, network.prompt = None, None
    weights.drop("context_embedder.", "prompt")
    weights.derive("context", context)
    note = "the prompt's embedding is a constant"
    first = network.transformer_blocks[0]
    if isinstance(first, JointBlock) and isinstance(first.norm1_context, ModulationTable):
        points, dim = first.norm1_context.table.shape[0], context.shape[-1]
        if points * context.shape[1] < dim:
            _fold_projections(first, weights, context, like)
            note += "; the first block's text projections are tables"
        else:
            note += f"; tables of {points} x {context.shape[1]} tokens would be larger than the projections: kept"
    return PassReport(NAME, True, before, count_parameters(network), note)


def _fold_projections(block: JointBlock, weights: WeightSource, context: Tensor, like: Tensor) -> None:
    norm, attn = block.norm1_context, block.attn
    if not isinstance(norm, ModulationTable):
        raise TypeError("the text norm is not folded")
    table = weights.get(f"{_BLOCK}norm1_context.table", torch.float64)
    rows = [ModulationRows(norm.rows, point.unbind(0)) for point in table]
    normed = torch.stack([modulate(context[0], scale=at.scale_msa, shift=at.shift_msa) for at in rows])
    projections = {"q": "add_q_proj", "k": "add_k_proj", "v": "add_v_proj"}
    present = {short: name for short, name in projections.items() if getattr(attn, name) is not None}
    with torch.device(like.device):
        block.text = TextTable(len(table), context.shape[1], context.shape[-1], tuple(present)).to(like.dtype)
    for short, name in present.items():
        folded = weights.materialise(getattr(attn, name), f"{_BLOCK}attn.{name}.")(normed)
        setattr(block.text, short, _parameter(folded, like))
        weights.derive(f"{_BLOCK}text.{short}", folded)
        weights.drop(f"{_BLOCK}attn.{name}.")
        setattr(attn, name, None)
    block.norm1_context = keep_rows(
        norm,
        [row for row in norm.rows if not row.endswith("_msa") or row == "gate_msa"],
        weights,
        f"{_BLOCK}norm1_context",
    )


def keep_rows(table: ModulationTable, rows: list[str], weights: WeightSource, name: str) -> ModulationTable | None:
    """A table with only some of its rows, in the network and in the weights; ``None`` when none is left."""
    if not rows:
        weights.drop(f"{name}.table")
        return None
    places = [table.rows.index(row) for row in rows]
    weights.derive(f"{name}.table", weights.get(f"{name}.table", torch.float64)[:, places])
    old = table.table
    with torch.device(old.device):
        kept = ModulationTable(old.shape[0], old.shape[2], tuple(rows)).to(old.dtype)
    if old.device.type != "meta":
        kept.table.data.copy_(old.data[:, places])
    return kept


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(device=like.device, dtype=like.dtype), requires_grad=False)
