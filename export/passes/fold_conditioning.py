"""Fold timestep, pooled prompt and every AdaLN layer into tables over the schedule's points.

Requires: an :class:`MMDiT` with computed modulation; its weights, ``pooled`` among them; the schedule's timesteps.
Ensures: the network takes a point's index instead of a timestep; every ``Modulation`` is a ``ModulationTable`` of the
same rows; ``time_text_embed``, ``pooled`` and all AdaLN linears are gone. Outputs change by rounding only: the tables
are computed in float64 from the float32 sinusoid that diffusers uses.

The prompt and the timesteps are constants of a bundle, so a third of each network (two linears of D x 6 D per block)
does nothing but produce these rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from livemoments.export.conditioning import Modulation, ModulationTable
from livemoments.export.mmdit import MMDiT
from livemoments.export.passes.report import PassReport, count_parameters
from livemoments.export.weights import WeightSource

NAME = "fold_conditioning"


def fold_conditioning(network: MMDiT, weights: WeightSource, timesteps: Sequence[float]) -> PassReport:
    """Apply the pass.

    Args:
        network: changed in place; usually on the meta device.
        weights: changed in place: tables added, what they replace dropped.
        timesteps: 1000 x sigma of every point, in the order in which ``step`` will index them.
    """
    before = count_parameters(network)
    if network.time_text_embed is None:
        return PassReport(NAME, False, before, before, "the conditioning is folded already")
    embedding = weights.materialise(network.time_text_embed, "time_text_embed.")
    pooled = weights.get("pooled", torch.float64)
    conditioning = embedding(torch.tensor(timesteps, dtype=torch.float64, device=pooled.device), pooled)
    modulations = [(name, module) for name, module in network.named_modules() if isinstance(module, Modulation)]
    for name, module in modulations:
        _fold_one(network, name, module, weights, conditioning)
    network.time_text_embed = None
    network.pooled = None
    network.folded = True
    weights.drop("time_text_embed.", "pooled")
    after = count_parameters(network)
    return PassReport(
        NAME, True, before, after, f"{len(modulations)} AdaLN layers became tables of {len(timesteps)} points"
    )


def _fold_one(network: MMDiT, name: str, module: Modulation, weights: WeightSource, conditioning: torch.Tensor) -> None:
    like = module.linear.weight
    table = weights.materialise(module, f"{name}.").table(conditioning)
    with torch.device(like.device):
        folded = ModulationTable(len(table), table.shape[-1], module.rows).to(like.dtype)
    if like.device.type != "meta":
        folded.table.data.copy_(table)
    replace_module(network, name, folded)
    weights.drop(f"{name}.linear.")
    weights.derive(f"{name}.table", table)


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at the dotted path ``name`` of ``root``."""
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
