"""Presets of the degradation: the ranges that parameters are drawn from, as data (``degradations.toml``)."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated

import msgspec

from livemoments.errors import UsageError
from livemoments.validate.synlive.kernels import BlurKind

PRESETS = ("real-esrgan", "live-photo")
"""Those that ship."""

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Quality = Annotated[int, msgspec.Meta(ge=1, le=100)]
Odd = Annotated[int, msgspec.Meta(ge=1, le=51)]


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the two stages; every field is explained, with its unit, at the top of ``degradations.toml``."""

    kernel_px: tuple[Odd, Odd]
    kernels: dict[BlurKind, Probability]
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


@cache
def _shipped() -> dict[str, Preset]:
    data = resources.files("livemoments.validate.synlive").joinpath("degradations.toml").read_bytes()
    return msgspec.toml.decode(data, type=dict[str, Preset])
