"""How a checkpoint is exported: one set of options for ``export_bundle`` and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from livemoments.errors import UsageError
from livemoments.manifest import APPLE_TARGETS
from livemoments.types import ReferencePolicy, Size, Stage

Verify = Literal["full", "sampled", "finite", "none"]

TARGETS = ("onnx", "tensorrt", "coreml", "coreai", "torch")
PRECISIONS = ("fp32", "fp16")
WEIGHT_BITS = {"int8-weights": 8, "int4-weights": 4}
"""The target ``coreai``'s further precisions: the transformers' weights in so many bits, computed with as fp16."""
VERIFY = ("full", "sampled", "finite", "none")
KV_LAYOUTS = ("per-block", "stacked")
DEFAULT_STEP_COUNTS = (1, 2, 3, 4, 6)
DEFAULT_BLOCKS_PER_PACKAGE = 6
"""Of SD3-medium's 24: below 1 GB a package in half precision, a limit that iOS 18 was reported to have."""
FLOW_MULTIPLE_PX = 8
MIN_FLOW_PX = 64
"""RAFT's smallest side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of :func:`livemoments.export.pipeline.export_bundle`.

    Attributes:
        target: ``onnx``: graphs with onnxruntime's own form of attention, the fastest there. ``tensorrt``: graphs with
            the standard one, so that they hold standard operators alone; onnxruntime runs these too, more slowly, and
            engines are built from either (:mod:`livemoments.export.tensorrt.build`). ``coreml``: packages for iOS 18
            and macOS 15. ``coreai``: packages for iOS 27 and macOS 27. ``torch``: the networks themselves, for PyTorch
            (:mod:`livemoments.pytorch`).
        precision: ``fp32`` or ``fp16``; with the target ``coreai`` also ``int8-weights`` and ``int4-weights``
            (:data:`WEIGHT_BITS`). RAFT stays in float32.
        tiles: sizes to hold graphs for; sides are multiples of a token (16 px with upstream's networks), within the
            position table. ``None`` is the checkpoint's own training size (its ``tile``, else ``sample_size``):
            1024 x 1024 with upstream's networks.
        overlap: least overlap of neighbouring tiles, pixels. ``None`` is the checkpoint's own beside its own tile, else
            a sixteenth of the smallest side in whole tokens: 64 px with upstream's networks.
        steps: step counts that are sampled with upstream's exact timesteps.
        reference_policy: the policy that the runtime uses unless it is told otherwise.
        kv_layout: how keys and values pass from one network to the other: ``per-block``, the faster one, or
            ``stacked``.
        stages: only these; ``None`` is all six, or the five of a checkpoint without RAFT. A bundle of fewer cannot
            restore a photo.
        verify: ``full`` compares every graph with the reference at every point of the schedule, ``sampled`` at the
            first and the last, ``finite`` only runs every graph once, ``none`` does not.
        vae_tiles: sizes besides the tiles' for which the VAE alone holds graphs, for ``restore --vae-tile``.
        flow_sizes: sizes, multiples of 8 px, besides the tiles' for which the targets ``coreml`` and ``coreai`` hold
            RAFT: those of the video frames that come with the photos. Other targets' RAFT takes any.
        blocks_per_package: how many transformer blocks the target ``coreml`` puts into one package at most.
    """

    target: str = "onnx"
    precision: str = "fp32"
    tiles: Sequence[Size] | None = None
    overlap: int | None = None
    steps: Sequence[int] = DEFAULT_STEP_COUNTS
    reference_policy: str = "per-step"
    kv_layout: str = "per-block"
    stages: Sequence[Stage] | None = None
    verify: Verify = "full"
    vae_tiles: Sequence[Size] = ()
    flow_sizes: Sequence[Size] = ()
    blocks_per_package: int = DEFAULT_BLOCKS_PER_PACKAGE

    def vae_sizes(self, tiles: Sequence[Size]) -> list[Size]:
        """The sizes that the VAE's graphs have: the tiles' first."""
        return list(dict.fromkeys([*tiles, *self.vae_tiles]))

    def check(self) -> None:
        """See whether the options can be used, with whatever checkpoint.

        Raises:
            UsageError: one of them cannot, named.
        """
        for what, value, allowed in (
            ("target", self.target, TARGETS),
            ("precision", self.precision, (*PRECISIONS, *WEIGHT_BITS)),
            ("verification", self.verify, VERIFY),
            ("layout of keys and values", self.kv_layout, KV_LAYOUTS),
        ):
            if value not in allowed:
                raise UsageError(f"this release has no {what} '{value}'", fix=f"use {', '.join(allowed)}")
        if self.tiles is not None and not self.tiles:
            raise UsageError("no tile size was given", fix="give at least one, e.g. 1024x1024")
        for size in self.flow_sizes:
            if any(side % FLOW_MULTIPLE_PX or side < MIN_FLOW_PX for side in (size.height, size.width)):
                raise UsageError(
                    f"RAFT takes no images of {size}",
                    fix=f"use multiples of {FLOW_MULTIPLE_PX} px from {MIN_FLOW_PX} px",
                )
        if self.blocks_per_package < 1:
            raise UsageError(f"{self.blocks_per_package} blocks make no package", fix="use 4 to 6")
        if self.target not in APPLE_TARGETS and self.flow_sizes:
            raise UsageError("sizes of the flow are the target coreml's and coreai's", fix="leave them out")
        if self.target != "coreml" and self.blocks_per_package != DEFAULT_BLOCKS_PER_PACKAGE:
            raise UsageError("blocks per package are the target coreml's", fix="leave them out")
        if self.target != "coreai" and self.precision in WEIGHT_BITS:
            raise UsageError(
                f"the precision {self.precision} is exported for the target coreai alone",
                fix="export fp32, and give the bundle to 'livemoments quantize'",
            )
        if self.stages is not None and not self.stages:
            raise UsageError("no stage to export was named")
        ReferencePolicy.parse(self.reference_policy)

    def precision_of(self, stage: Stage) -> str:
        """A stage's precision: RAFT's is always float32, and fewer bits are the transformers' only."""
        if stage == Stage.FLOW:
            return "fp32"
        is_transformer = stage in (Stage.REFERENCE, Stage.RESTORATION)
        return "fp16" if self.precision in WEIGHT_BITS and not is_transformer else self.precision
