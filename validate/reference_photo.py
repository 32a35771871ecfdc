"""The reference's photo under exactly the conditions of a runtime restoration: same images, tiles, noise, policy."""

from __future__ import annotations

import numpy as np
import torch

from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import Reference
from livemoments.reference.pipeline import (
    NoiseOfTile,
    Observer,
    PipelineSettings,
    RestoredPhoto,
    TileNoise,
    ignore,
    restore_photo,
)
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.inputs import RestoreInputs
from livemoments.runtime.noise import NoiseSource, SeededNoise
from livemoments.runtime.tiles.plan import TilePlan
from livemoments.types import ReferencePolicy, Tile


def restore_like_runtime(
    reference: Reference,
    inputs: RestoreInputs,
    plan: TilePlan,
    *,
    steps: int,
    seed: int,
    policy: str,
    observe: Observer = ignore,
    progress: Progress = SILENT,
) -> RestoredPhoto:
    """Restore with PyTorch under the runtime's conditions, with the tiles that a bundle would get.

    Args:
        reference: the loaded checkpoint.
        inputs: the images, as the runtime loaded them.
        plan: the tiles.
        steps: Euler steps.
        seed: of the noise, drawn as the runtime draws it.
        policy: the reference policy's name.
        observe: told every intermediate.
        progress: where to report.
    """
    settings = PipelineSettings(
        tile=plan.tile,
        overlap=plan.overlap,
        steps=steps,
        policy=ReferencePolicy.parse(policy),
        tiles=plan.tiles,
        padded=plan.padded,
        upstream_border=False,
        upstream_color=False,
    )
    images = LivePhoto(inputs.frame, inputs.photo, inputs.photo_frame).map(image_tensor)
    noise = torch_noise(SeededNoise(seed))
    return restore_photo(reference, images, inputs.size, noise, settings, observe=observe, progress=progress)


def torch_noise(source: NoiseSource) -> NoiseOfTile:
    """The runtime's noise as the reference takes it."""

    def of_tile(tile: Tile, shape: tuple[int, ...]) -> TileNoise:
        channels, height, width = shape[-3:]
        drawn = source.draw(tile, (channels, height, width))
        arrays = (drawn.posterior_lr, drawn.posterior_ref, drawn.initial)
        return TileNoise(*(torch.from_numpy(array)[None] for array in arrays))

    return of_tile


def image_tensor(photo: Photo) -> torch.Tensor:
    """A photo as the reference takes it, (1, 3, H, W), [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(photo.unit().transpose(2, 0, 1)))[None]
