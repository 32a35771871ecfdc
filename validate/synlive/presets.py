"""Presets of the degradation: the ranges that parameters are drawn from, as data (``degradations.toml``)."""

from __future__ import annotations

import os
from functools import cache
from importlib import resources
from typing import Annotated

import msgspec

from livemoments.errors import FileError, UsageError
from livemoments.store.files import read_file

PRESETS = ("real-esrgan", "live-photo")
"""Those that ship."""
_KINDS = frozenset({"iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"})

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Quality = Annotated[int, msgspec.Meta(ge=1, le=100)]
Odd = Annotated[int, msgspec.Meta(ge=1, le=51)]


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the two stages; every field is explained, with its unit, at the top of ``degradations.toml``."""

    kernel_px: tuple[Odd, Odd]
    kernels: dict[str, Probability]
    sinc_prob: Probability
    blur_prob: Probability
    sigma_px: tuple[Positive, Positive]
    beta_generalized: tuple[Positive, Positive]
    beta_plateau: tuple[Positive, Positive]
    resize_odds: tuple[Probability, Probability, Probability]
    resize: tuple[Positive, Positive]
    gaussian_prob: Probability
    gaussian_sigma: tuple[Positive, Positive]
    poisson_scale: tuple[Positive, Positive]
    grey_prob: Probability
    jpeg: tuple[Quality, Quality]


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two stages and the odds of the last sinc filter."""

    stages: tuple[Stage, Stage]
    final_sinc_prob: Probability


def load_preset(name: str) -> Preset:
    """A preset that ships.

    Raises:
        UsageError: the name is unknown.
    """
    presets = _shipped()
    if name not in presets:
        raise UsageError(f"'{name}' is not a degradation", fix=f"use one of {', '.join(PRESETS)}")
    return presets[name]


def read_presets(path: str | os.PathLike[str]) -> dict[str, Preset]:
    """Presets of one's own, from a TOML file like ``degradations.toml``.

    Raises:
        FileError: it cannot be read, or a range or a probability cannot be used.
    """
    try:
        return _decode(os.fspath(path), read_file(path))
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", fix="check the path") from None


@cache
def _shipped() -> dict[str, Preset]:
    name = "degradations.toml"
    return _decode(name, resources.files("livemoments.validate.synlive").joinpath(name).read_bytes())


def _decode(path: str, data: bytes) -> dict[str, Preset]:
    try:
        presets = msgspec.toml.decode(data, type=dict[str, Preset])
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"is not a list of degradations ({error})", fix="see degradations.toml") from None
    for name, preset in presets.items():
        for number, stage in enumerate(preset.stages, 1):
            if problem := _problem(stage):
                raise FileError(path, f"{name}, stage {number}: {problem}", fix="see degradations.toml")
    return presets


def _problem(stage: Stage) -> str | None:
    for field in ("kernel_px", "sigma_px", "beta_generalized", "beta_plateau", "gaussian_sigma", "poisson_scale"):
        low, high = getattr(stage, field)
        if low > high:
            return f"{field} runs from {low} down to {high}"
    if stage.jpeg[0] > stage.jpeg[1]:
        return f"jpeg runs from {stage.jpeg[0]} down to {stage.jpeg[1]}"
    if any(side % 2 == 0 for side in stage.kernel_px):
        return "kernel_px must be odd"
    if not stage.resize[0] <= 1 <= stage.resize[1]:
        return "resize must hold 1 between its ends"
    if unknown := set(stage.kernels) - _KINDS:
        return f"'{min(unknown)}' is not a kernel"
    if abs(sum(stage.kernels.values()) - 1) > 1e-6 or abs(sum(stage.resize_odds) - 1) > 1e-6:
        return "odds must add up to 1"
    return None
