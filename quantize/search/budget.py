"""What a mix of precisions may cost in quality, and what it saves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.quantize.actions import Action
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.search.photo_loss import Score, from_db, to_db
from livemoments.quantize.search.sensitivity_report import LayerSensitivity
from livemoments.types import Size, Stage

Goal = Literal["size", "speed"]

_BUDGET = re.compile(r"\s*(\d{1,3}(?:\.\d{1,4})?)\s*dB(-of-quality)?\s*", re.IGNORECASE)
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


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for the loss.

    Attributes:
        db: either the least PSNR of the photos against the source engine's, or how much of their PSNR against the truth
            they may lose to the source engine's.
        of_quality: which of the two.
    """

    db: float
    of_quality: bool = False

    def __str__(self) -> str:
        return f"{self.db:g}dB" + ("-of-quality" if self.of_quality else "")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read ``42dB`` or ``0.1dB-of-quality``.

        Raises:
            UsageError: it is neither, or zero.
        """
        match = _BUDGET.fullmatch(text)
        if match is None or float(match[1]) == 0:
            raise UsageError(
                f"'{text}' is not a budget",
                fix="write 42dB (PSNR from the source's photo) or 0.1dB-of-quality (PSNR lost against the truth)",
            )
        return cls(float(match[1]), of_quality=match[2] is not None)

    def allowed_mse(self, source: Score) -> float:
        """The error from the source's photos that is about allowed; exact for a PSNR budget.

        Noise that is independent of the source's own error adds to it: a loss of d dB is an error of
        ``(10^(d/10) - 1)`` times the source's.

        Raises:
            UsageError: the budget is one of quality and a photo has no truth.
        """
        if not self.of_quality:
            return from_db(self.db)
        if source.truth_mse is None:
            raise UsageError(
                "a budget of quality needs photos whose perfect restoration is known", fix="give the budget as 42dB"
            )
        return source.truth_mse * (10 ** (self.db / 10) - 1)

    def is_kept(self, source: Score, candidate: Score) -> bool:
        """Whether measured photos are within the budget."""
        return self.spent_db(source, candidate) <= self.db if self.of_quality else candidate.psnr_db >= self.db

    def spent_db(self, source: Score, candidate: Score) -> float:
        """What the budget is about: the PSNR from the source's photo, or the quality lost (negative: gained)."""
        if not self.of_quality:
            return candidate.psnr_db
        if source.truth_mse is None or candidate.truth_mse is None:
            raise UsageError("a budget of quality needs photos whose perfect restoration is known")
        return to_db(source.truth_mse) - to_db(candidate.truth_mse)


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
