"""Rewrite a graph's linears as a mix says: what the pipeline, the sensitivity analysis and the search call."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from livemoments.errors import UsageError
from livemoments.export.passes.remove_dead import remove_dead
from livemoments.graphs.linears import Linear, iter_linear_nodes
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.dynamic import rewrite_dynamic
from livemoments.quantize.rewrite.graph_edit import Target
from livemoments.quantize.rewrite.input_ranges import StatsOf
from livemoments.quantize.rewrite.static import rewrite_static
from livemoments.quantize.rewrite.weight_only import rewrite_weights
from livemoments.quantize.rotation import rotation_block


def rewrite(
    model: ir.Model,
    linears: Sequence[Linear],
    mix: Mix,
    recipe: Recipe,
    stats: StatsOf | None = None,
) -> bool:
    """Quantize linears of one graph; a function of its arguments alone.

    Args:
        model: changed in place. Quantized weights are lazy: each is read and quantized when it is written, so the
            source's files must stay until then.
        linears: what :func:`livemoments.graphs.linears.find_linears` gives for the model.
        mix: what to do with each; those it does not name are kept, those of other stages are ignored.
        recipe: settings of the actions (block size, method, ranges …).
        stats: what calibration saw, by linear; ``Action.INT8_STATIC`` and ``Action.FP8`` need it.

    Returns:
        Whether anything changed.

    Raises:
        UsageError: an action that needs it has no calibration for a linear.
    """
    wanted: dict[Action, list[Target]] = {}
    known = {linear.id.weight: linear for linear in linears}
    for node, data, weight in list(iter_linear_nodes(model)):
        linear = known.get(weight.name or "")
        action = Action.KEEP if linear is None else mix.get(linear.id, Action.KEEP)
        if linear is not None and action is not Action.KEEP:
            most = recipe.rotation if action.needs_calibration else 0
            block = rotation_block(linear.id, linear.in_features, most)
            wanted.setdefault(action, []).append(Target(linear, node, data, weight, block))
    if stats is None and (lacking := [action.value for action in wanted if action.needs_calibration]):
        raise UsageError(f"{', '.join(lacking)} needs a calibration", fix="pass --calibration DIR")
    for action in Action:  # in a fixed order, so that equal mixes give equal bytes
        if targets := wanted.get(action):
            _apply(model, action, targets, recipe, stats)
    if wanted:
        remove_dead(model)
    return bool(wanted)


def _apply(model: ir.Model, action: Action, targets: list[Target], recipe: Recipe, stats: StatsOf | None) -> None:
    if action.needs_calibration:
        rewrite_static(model, targets, recipe, stats, fp8=action is Action.FP8)
    elif action is Action.INT8_DYNAMIC:
        rewrite_dynamic(model, targets)
    elif action is Action.PALETTE:
        raise UsageError("ONNX graphs have no palettes", fix="use a recipe of whole weights, or a bundle of packages")
    else:
        rewrite_weights(model, targets, recipe, stats, bits=8 if action is Action.WEIGHT_INT8 else 4)
