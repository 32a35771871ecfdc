"""How a bundle is quantized: one set of options for ``quantize``, ``quantize_bundle`` and the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from livemoments.errors import UsageError
from livemoments.quantize.search.budget import Budget, Goal

if TYPE_CHECKING:
    from livemoments.quantize.actions import Mix
    from livemoments.quantize.calibrate.result import CalibrationResult
    from livemoments.quantize.recipes import Recipe


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """The options of :func:`livemoments.quantize.pipeline.quantize_bundle`.

    Attributes:
        recipe: the name of a shipped recipe, a TOML file, or a recipe.
        calibration: a set of photos (a folder ``lr/``, ``ref/``), a saved calibration (a file), or its result; a budget
            needs the set.
        budget: quantize only as many layers as this loss leaves room for, ``42dB`` or ``0.1dB-of-quality``, measured on
            photos of the set; ``None``: all that the recipe quantizes.
        goal: what a budget is spent on: the ``size`` in bytes, or the ``speed`` by a rough model of the products' time.
        photos: how many photos of the set the loss is measured on.
        via: ``modelopt``: nvidia-modelopt computes the observer that the recipe names; ``None``: this project does.
        autotune: keep the linears in floating point that TensorRT does not run faster quantized, as nvidia-modelopt's
            Autotune measures on this machine's GPU.
        mix: what happens to each linear; ``None``: what the recipe or the search for the budget says.
        seed: the seed of the noise that photos are restored with.
        allow_slower: accept engines that are slower than the source's.
        check_speed: time the transformers against the source's, if the recipe is meant to be fast on a CPU.
        verify: run the new engines against the source's; without it, neither parity nor speed is known.
        work: a folder that keeps finished photos and layers; the same call, after an interruption, goes on from there.
        overwrite: replace an older bundle.

    Raises:
        UsageError: the seed is negative, ``via`` is something else, the budget cannot be read or has no photos to be
            measured on, or it and Autotune are to choose the layers.
    """

    recipe: str | os.PathLike[str] | Recipe
    calibration: CalibrationResult | str | os.PathLike[str] | None = None
    budget: str | Budget | None = None
    goal: Goal = "size"
    photos: int = 2
    via: Literal["modelopt"] | None = None
    autotune: bool = False
    mix: Mix | None = None
    seed: int = 0
    allow_slower: bool = False
    check_speed: bool = True
    verify: bool = True
    work: str | os.PathLike[str] | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without the bundle."""
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative", fix="use 0 or more")
        if self.via not in (None, "modelopt"):
            raise UsageError(f"via='{self.via}' is no source of ranges", fix="use 'modelopt', or leave it out")
        if self.autotune and (self.budget is not None or self.mix is not None):
            raise UsageError(
                "a budget and Autotune each choose which layers are quantized", fix="leave --budget or --autotune out"
            )
        if self.limit is not None and not isinstance(self.calibration, str | os.PathLike):
            raise UsageError(
                "a budget needs a calibration set: the loss is measured on its photos", fix="pass --calibration DIR"
            )

    @property
    def limit(self) -> Budget | None:
        """The budget, parsed."""
        return Budget.parse(self.budget) if isinstance(self.budget, str) else self.budget

    @property
    def work_folder(self) -> Path | None:
        """The folder ``work`` as a path."""
        return None if self.work is None else Path(self.work)
