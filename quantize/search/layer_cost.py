"""What one layer costs in bytes or time, for the search to compare."""

from __future__ import annotations

from collections.abc import Mapping

from livemoments.bundle import Bundle
from livemoments.quantize.actions import Action
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.search.budget import Goal
from livemoments.quantize.search.sensitivity_report import LayerSensitivity
from livemoments.types import Size, Stage

_BITS = {
    Action.INT8_STATIC: 8,
    Action.INT8_DYNAMIC: 8,
    Action.FP8: 8,
    Action.WEIGHT_INT8: 8,
    Action.WEIGHT_INT4: 4,
}
_BLOCKWISE = (Action.WEIGHT_INT8, Action.WEIGHT_INT4)
_RELATIVE_TIME: Mapping[Action, float] = {
    Action.KEEP: 1.0,
    Action.INT8_STATIC: 0.45,
    Action.INT8_DYNAMIC: 0.46,
    Action.FP8: 0.5,
    Action.WEIGHT_INT8: 0.83,
    Action.WEIGHT_INT4: 0.76,
}
"""Time of a product against float32's, on a CPU with VNNI (a step of the ``mid`` checkpoint). Only says which layers
are worth it; what a mix really gains is measured on the finished bundle."""
_TEXT_KINDS = ("attn.add_", "attn.to_add_out", "ff_context.")


def layer_cost(
    layer: LayerSensitivity, action: Action, goal: Goal, bundle: Bundle, size: Size, recipe: Recipe
) -> float:
    """What one linear costs: stored bytes, or multiplications of one tile and step weighted by their relative time."""
    if goal == "speed":
        products = layer.in_features * layer.out_features * _tokens(layer.kind, bundle, size)
        return products * _RELATIVE_TIME[action]
    element_bytes = 2 if bundle.stage(Stage(layer.linear.stage)).precision == "fp16" else 4
    elements = layer.in_features * layer.out_features
    if action is Action.KEEP:
        return elements * element_bytes
    weights = elements * _BITS[action] / 8
    if action not in _BLOCKWISE:
        return weights + 4 * layer.out_features
    scales = -(-layer.in_features // recipe.block_size) * layer.out_features
    return weights + scales * (element_bytes + (0 if recipe.symmetric else _BITS[action] / 8))


def _tokens(kind: str, bundle: Bundle, size: Size) -> int:
    model = bundle.manifest.model
    if kind.startswith(_TEXT_KINDS):
        return model.text_tokens
    pixels_per_token = model.vae_scale * model.patch_size
    return (size.height // pixels_per_token) * (size.width // pixels_per_token)
