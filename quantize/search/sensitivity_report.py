"""The report of a sensitivity measurement: what it holds, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from livemoments.graphs.linears import LinearId
from livemoments.quantize.actions import Action

SCHEMA = "livemoments/sensitivity/1"


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """One linear, quantized alone.

    Attributes:
        linear: which one.
        block: its transformer block, ``None`` outside of one.
        kind: which of the block's linears.
        in_features, out_features: the weight's sides.
        action: what was done to it.
        sqnr_db: signal to quantization noise of the stage's outputs, for each sampled point in the order of the steps.
        photo_psnr_db: PSNR of the photo against the source's, quantized at every step.
        step_photo_psnr_db: the same, quantized at one step only; empty unless it was asked for.
    """

    linear: LinearId
    block: int | None
    kind: str
    in_features: int
    out_features: int
    action: Action
    sqnr_db: tuple[float, ...]
    photo_psnr_db: float
    step_photo_psnr_db: tuple[float, ...] = ()

    @property
    def worst_step(self) -> int:
        """The step with the most noise."""
        return int(np.argmin(self.sqnr_db))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data; infinite numbers are null."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "linear": str(self.linear),
            "action": self.action.value,
            "sqnr_db": [_finite(value) for value in self.sqnr_db],
            "photo_psnr_db": _finite(self.photo_psnr_db),
            "step_photo_psnr_db": [_finite(value) for value in self.step_photo_psnr_db],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerSensitivity:
        """The inverse of :meth:`to_json`."""
        read: dict[str, Any] = {
            "linear": LinearId.parse(data["linear"]),
            "action": Action(data["action"]),
            "sqnr_db": tuple(map(_number, data["sqnr_db"])),
            "photo_psnr_db": _number(data["photo_psnr_db"]),
            "step_photo_psnr_db": tuple(map(_number, data["step_photo_psnr_db"])),
        }
        return cls(**{**data, **read})


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What :func:`livemoments.quantize.search.sensitivity.measure_sensitivity` measured.

    Attributes:
        recipe: the recipe whose settings were used.
        key: SHA-256 of everything that the numbers depend on.
        timesteps: the timesteps of the sampled points, in the order of the steps.
        layers: in the order of the stages and of their graphs.
    """

    recipe: str
    key: str
    timesteps: tuple[float, ...]
    layers: tuple[LayerSensitivity, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "key": self.key,
            "timesteps": list(self.timesteps),
            "layers": [layer.to_json() for layer in self.layers],
        }

    def to_text(self, most: int | None = None) -> str:
        """A table, the layer that harms the photo most first; ``most`` rows of it."""
        rows = sorted(self.layers, key=lambda layer: (layer.photo_psnr_db, str(layer.linear)))[:most]
        width = max([len(str(row.linear)) for row in rows], default=5)
        lines = [f"{'layer':<{width}}  {'weights':>9}  {'worst SQNR':>10}  {'at step':>7}  {'photo':>9}"]
        lines += [
            f"{row.linear!s:<{width}}  {row.in_features * row.out_features / 1e6:7.2f} M  "
            f"{min(row.sqnr_db):7.1f} dB  {row.worst_step + 1:>7}  {row.photo_psnr_db:6.1f} dB"
            for row in rows
        ]
        return "\n".join(lines)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.inf if value is None else value
