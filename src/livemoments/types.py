"""The small types that every part shares: tensors' specs, tiles, stages, reference policies."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from livemoments.errors import UsageError

FlowNetwork = Literal["raft", "dis"]
"""What estimates a checkpoint's flow: its own RAFT, or OpenCV's DIS, which needs no weights."""


class Stage(enum.StrEnum):
    """The graphs of a bundle, in the order in which a tile passes through them."""

    FLOW = "flow"
    VAE_ENCODER = "vae_encoder"
    MOTION = "motion"
    REFERENCE = "reference"
    RESTORATION = "restoration"
    VAE_DECODER = "vae_decoder"

    @property
    def channel_axis(self) -> int:
        """Of its outputs: 1 of images, flows and latents (B, C, H, W), -1 of tokens (…, D)."""
        return -1 if self in (Stage.MOTION, Stage.REFERENCE) else 1


VAE_STAGES = (Stage.VAE_ENCODER, Stage.VAE_DECODER)
TRANSFORMER_STAGES = (Stage.REFERENCE, Stage.RESTORATION)


def whole_bundle(flow: FlowNetwork) -> tuple[Stage, ...]:
    """The stages of a bundle that can restore, in the order in which a tile passes through them."""
    return tuple(stage for stage in Stage if stage is not Stage.FLOW or flow == "raft")


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, element type and shape of one graph input or output.

    ``shape`` holds integers for fixed axes and names (``"batch"``, ``"height"``, ``"width"``) for free ones.
    ``dtype`` is numpy's name: ``float32``, ``float16``, ``int64``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits; free axes accept any positive length."""
        return len(shape) == len(self.shape) and all(
            got > 0 if isinstance(want, str) else got == want for got, want in zip(shape, self.shape, strict=True)
        )


_KEYS_VALUES = re.compile(r"reference_[kv]\.\d+")


def is_keys_values(name: str) -> bool:
    """Whether a tensor of this name passes the keys or values of one block from ReferenceNet to RestorationNet."""
    return _KEYS_VALUES.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width in pixels. Written ``WxH``, as photographers do: ``Size.parse("1024x768").height == 768``."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``WxH``, or ``N`` for a square.

        Raises:
            UsageError: the text is neither.
        """
        match = re.fullmatch(r"([1-9]\d{0,5})(?:[xX]([1-9]\d{0,5}))?", text.strip())
        if not match:
            raise UsageError(f"'{text}' is not a size in pixels", fix="write WIDTHxHEIGHT, e.g. 1024x1024")
        width = int(match[1])
        return cls(height=int(match[2] or width), width=width)


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of an image, in pixels; ``index`` is its place in row-major order over the plan."""

    index: int
    y: int
    x: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return Size(self.height, self.width)

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices of rows and columns."""
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """When ReferenceNet runs: ``per-step``, ``phase-split``, ``every-K`` or ``frozen``.

    ``per-step`` and ``phase-split`` are exact (they differ in which network is resident when); ``every-K``
    refreshes the keys and values at steps 0, K, 2K, …; ``frozen`` takes them once, at the first step's timestep
    or at step N's with ``frozen@N``.
    """

    name: str
    interval: int = 1
    frozen_step: int = 0

    def __str__(self) -> str:
        if self.name == "every":
            return f"every-{self.interval}"
        return f"frozen@{self.frozen_step}" if self.name == "frozen" and self.frozen_step else self.name

    @property
    def exact(self) -> bool:
        """Whether the result equals upstream's to rounding."""
        return self.name in ("per-step", "phase-split") or (self.name == "every" and self.interval == 1)

    @classmethod
    def parse(cls, text: str) -> ReferencePolicy:
        """Read a policy's name.

        Raises:
            UsageError: it is none of the four.
        """
        if text in ("per-step", "phase-split"):
            return cls(text)
        if match := re.fullmatch(r"every-([1-9]\d{0,3})", text):
            return cls("every", interval=int(match[1]))
        if match := re.fullmatch(r"frozen(?:@(\d{1,3}))?", text):
            return cls("frozen", frozen_step=int(match[1] or 0))
        raise UsageError(
            f"'{text}' is not a reference policy",
            fix="use per-step, phase-split, every-K (e.g. every-2) or frozen (or frozen@STEP)",
        )

    def source_steps(self, steps: int) -> tuple[int, ...]:
        """For each of ``steps`` sampling steps, the step at whose timestep its keys and values are computed.

        Raises:
            UsageError: ``frozen@N`` names a step that is not sampled.
        """
        if self.name == "every":
            return tuple(step - step % self.interval for step in range(steps))
        if self.name == "frozen":
            if self.frozen_step >= steps:
                raise UsageError(f"frozen@{self.frozen_step} names a step, but only 0 to {steps - 1} are sampled")
            return (self.frozen_step,) * steps
        return tuple(range(steps))
