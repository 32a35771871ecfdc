"""How the reference is recorded: one set of options for ``record`` and the command line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from livemoments.errors import UsageError
from livemoments.manifest import SchedulePoint
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.schedule import DEFAULT_STEPS, NOISE_LEVEL, sigma_at, step_indices
from livemoments.types import ReferencePolicy, Size
from livemoments.validate.recording.schema import DETAILS, Detail, RecordingSettings, Selection, StorageType

if TYPE_CHECKING:
    from livemoments.reference.checkpoint import Configs


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """The options of :func:`livemoments.validate.recording.pipeline.record`.

    Attributes:
        dtype: what floats are stored as; they are computed in float32 in any case. ``float16`` halves the size and
            rounds by up to 5e-4, relatively.
        tile: size of every tile; both sides are multiples of a token (16 px with upstream's networks). ``None``: what
            the checkpoint was trained for, as an export takes.
        overlap: least overlap of neighbouring tiles, pixels. ``None``: the checkpoint's own beside its own tile, else
            in proportion, as an export takes.
        steps: Euler steps.
        policy: when ReferenceNet runs.
        seed: decides the noise.
        detail: ``stages`` (inputs and outputs of every stage but keys and values), ``keys-values`` (and the motion
            bias), ``blocks`` (what leaves each transformer block), ``modules`` (what leaves every module). Each holds
            those before it.
        detail_images: how many photos, or which, are recorded in more detail than the stages; ``None``: all.
        detail_tiles: which tiles of those photos; ``None``: all.
        detail_steps: which of their steps; ``None``: all.
        blocks: the transformer blocks whose modules are recorded, and then no others; ``None``: every module.
        limit: at most this many photos, spread evenly over the names in order.
        device: where the reference runs: ``cpu``, ``cuda``, ``cuda:1``, …
    """

    dtype: StorageType = "float32"
    tile: Size | None = None
    overlap: int | None = None
    steps: int = DEFAULT_STEPS
    policy: str | ReferencePolicy = "per-step"
    seed: int = 0
    detail: Detail = "stages"
    detail_images: Collection[str] | int | None = 1
    detail_tiles: Collection[int] | None = (0,)
    detail_steps: Collection[int] | None = None
    blocks: Collection[int] | None = None
    limit: int | None = None
    device: str = "cpu"

    def check(self) -> None:
        """See whether the options can be used, with whatever checkpoint.

        Raises:
            UsageError: one of them cannot, named.
        """
        for what, numbers in (("tile", self.detail_tiles), ("step", self.detail_steps), ("block", self.blocks)):
            if numbers is not None and (not numbers or min(numbers) < 0):
                message = f"which {what}s to record in detail: {sorted(numbers)}"
                raise UsageError(message, fix=f"give {what} numbers from 0 on")
        if self.detail not in DETAILS:
            raise UsageError(f"there is no detail '{self.detail}'", fix=f"use {', '.join(DETAILS)}")
        if self.dtype not in ("float32", "float16"):
            raise UsageError(f"tensors cannot be stored as '{self.dtype}'", fix="use float32 or float16")
        step_indices(self.steps)
        ReferencePolicy.parse(str(self.policy)).source_steps(self.steps)
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative", fix="use 0 or more")
        if beyond := [step for step in sorted(self.detail_steps or ()) if step >= self.steps]:
            raise UsageError(f"step {beyond[0]} is to be recorded, but only 0 to {self.steps - 1} are sampled")
        if isinstance(self.detail_images, int) and self.detail_images < 0:
            raise UsageError(f"{self.detail_images} photos in detail are not possible", fix="use 0 or more")

    def settings(self, configs: Configs, tile: Size, overlap: int) -> RecordingSettings:
        """The recording's settings with a checkpoint's timesteps.

        Raises:
            UsageError: the checkpoint has no such blocks, or the tiles are not whole tokens of it, more of them than
                its position table has, or too small for the overlap.
        """
        plan_balanced(tile, [tile], overlap)  # the overlap must fit the tile
        count = configs.transformer.num_layers
        if beyond := [block for block in sorted(self.blocks or ()) if block >= count]:
            raise UsageError(f"the checkpoint has no block {beyond[0]}; it has blocks 0 to {count - 1}")
        token_px = configs.vae.scale * configs.transformer.patch_size
        largest = token_px * configs.transformer.pos_embed_max_size
        if tile.height % token_px or tile.width % token_px or max(tile.height, tile.width) > largest:
            raise UsageError(
                f"tiles of {tile} pixels are not possible with this checkpoint",
                fix=f"use multiples of {token_px} up to {largest}",
            )
        shift, train_steps = configs.schedule.shift, configs.schedule.num_train_timesteps
        sigmas = [sigma_at(index, shift=shift, train_steps=train_steps) for index in step_indices(self.steps)]
        return RecordingSettings(
            tile=str(tile),
            overlap=overlap,
            steps=self.steps,
            policy=str(self.policy),
            schedule=tuple(SchedulePoint(timestep=sigma * train_steps, sigma=sigma) for sigma in sigmas),
            noise_level=NOISE_LEVEL,
            seed=self.seed,
        )

    def selection(self, photos: Sequence[str]) -> Selection:
        """What is recorded in more detail than the stages.

        Args:
            photos: the names of all of them.

        Raises:
            UsageError: a photo that is not among them.
        """
        images = photos[: self.detail_images] if isinstance(self.detail_images, int) else self.detail_images
        chosen = set(photos if images is None else images)
        if unknown := sorted(chosen - set(photos)):
            raise UsageError(f"there is no photo '{unknown[0]}' in the set")
        numbers = (self.detail_tiles, self.detail_steps, self.blocks)
        tiles, steps, blocks = (None if some is None else tuple(sorted(set(some))) for some in numbers)
        named = None if images is None else tuple(name for name in photos if name in chosen)
        return Selection(images=named, tiles=tiles, steps=steps, blocks=blocks)
