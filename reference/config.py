"""The sizes of a checkpoint's networks, read from diffusers' ``config.json`` files and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemoments.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes of one MM-DiT (both networks share them). SD3-medium: 24 blocks, 24 heads x 64, patch 2."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    patch_size: int
    in_channels: int
    out_channels: int
    joint_attention_dim: int
    caption_projection_dim: int
    pooled_projection_dim: int
    sample_size: int
    pos_embed_max_size: int

    @property
    def dim(self) -> int:
        """Width D of the token stream."""
        return self.num_attention_heads * self.attention_head_dim

    def as_dict(self) -> dict[str, int]:
        """Diffusers' keyword arguments."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class VaeConfig:
    """What the pipeline needs to know of the VAE; ``raw`` builds diffusers' ``AutoencoderKL``.

    ``latent = (posterior_sample - shift_factor) * scaling_factor``.
    """

    latent_channels: int
    scaling_factor: float
    shift_factor: float
    scale: int
    raw: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """SD3's flow-matching schedule: ``shift`` 3 over 1000 training timesteps."""

    shift: float
    num_train_timesteps: int


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing, unreadable or not a JSON object.
    """
    if not path.is_file():
        raise CheckpointError(path, "no such file", fix="name a checkpoint in upstream's layout (docs/checkpoints.md)")
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"not readable as JSON ({error})", fix="download the file again") from None
    if not isinstance(document, dict):
        raise CheckpointError(path, "holds no JSON object", fix="download the file again")
    return document


def read_transformer_config(path: Path) -> TransformerConfig:
    """The sizes in a transformer's ``config.json``.

    Raises:
        CheckpointError: a size is missing or not a positive integer, the sizes contradict each other, or the network
            has features of later SD3 versions (qk-norm, dual attention) that LiveMoments does not use.
    """
    values = read_json(path)
    if values.get("qk_norm") is not None or values.get("dual_attention_layers"):
        raise CheckpointError(path, "has qk_norm or dual attention layers: this is SD3.5, LiveMoments is SD3-medium")
    names = TransformerConfig.__dataclass_fields__
    values.setdefault("out_channels", values.get("in_channels"))
    bad = [name for name in names if not _is_count(values.get(name))]
    if bad:
        raise CheckpointError(path, f"missing or not a positive integer: {', '.join(bad)}")
    config = TransformerConfig(**{name: values[name] for name in names})
    if config.caption_projection_dim != config.dim:
        raise CheckpointError(
            path, f"caption_projection_dim is {config.caption_projection_dim}, heads x head size is {config.dim}"
        )
    return config


def read_vae_config(path: Path) -> VaeConfig:
    """The VAE's ``config.json``.

    Raises:
        CheckpointError: a field is missing.
    """
    values = read_json(path)
    needed = ("latent_channels", "scaling_factor", "shift_factor", "block_out_channels")
    if missing := [name for name in needed if values.get(name) is None]:
        raise CheckpointError(path, f"lacks {', '.join(missing)}")
    counts = [values["latent_channels"], *_list(values["block_out_channels"])]
    factors = [values["scaling_factor"], values["shift_factor"]]
    if not all(_is_count(count) for count in counts) or not all(type(f) in (int, float) for f in factors):
        raise CheckpointError(path, f"one of {', '.join(needed)} is no number of its kind")
    raw = {name: value for name, value in values.items() if not name.startswith("_")}
    return VaeConfig(
        latent_channels=int(values["latent_channels"]),
        scaling_factor=float(values["scaling_factor"]),
        shift_factor=float(values["shift_factor"]),
        scale=2 ** (len(values["block_out_channels"]) - 1),
        raw=raw,
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) and value else [None]


def read_schedule_config(path: Path) -> ScheduleConfig:
    """The scheduler's ``scheduler_config.json``.

    Raises:
        CheckpointError: ``shift`` or ``num_train_timesteps`` is missing.
    """
    values = read_json(path)
    if not isinstance(values.get("shift"), int | float) or not isinstance(values.get("num_train_timesteps"), int):
        raise CheckpointError(path, "lacks shift or num_train_timesteps")
    return ScheduleConfig(shift=float(values["shift"]), num_train_timesteps=values["num_train_timesteps"])


def motion_sizes(shapes: Mapping[str, Sequence[int]]) -> tuple[tuple[int, ...], int]:
    """Widths and depth of the encoder that a state dict belongs to, for
    :class:`~livemoments.reference.motion.MotionEncoder`.

    Keys that do not fit are left for the strict comparison to name.
    """
    strided = sorted(
        int(m[1]) for key in shapes if (m := re.fullmatch(r"blocks\.0\.(\d{1,4})\.weight", key)) and shapes[key]
    )
    widths = tuple(int(shapes[f"blocks.0.{index}.weight"][0]) for index in strided)
    depth = len({key.split(".")[1] for key in shapes if key.startswith("blocks.") and key.count(".") == 3})
    return widths, depth
