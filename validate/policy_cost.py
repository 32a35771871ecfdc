"""What an inexact reference policy costs: the same engines' photo under it and under ``per-step``."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.inputs import ImageSource
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import restore
from livemoments.simulated_clip import simulate_live_photo, synthetic_photograph
from livemoments.types import Size
from livemoments.validate.report_data import Check

_TILES = (1.4, 1.2)
"""Height and width of the made-up photo in tiles: a little more than one, so that blending and PCR take part."""
_LEAST_SIDE_PX = 148
"""What :func:`simulate_live_photo` needs to leave 64-pixel frames, however small the tiles are."""
STITCHED_PEAK = 2.0
"""Of stitched pixels, which lie in [-1, 1]."""


def smallest_tile(bundle: Bundle) -> Size:
    """The tile size of a bundle that is quickest to compute."""
    return min(bundle.tile_sizes, key=lambda size: size.height * size.width)


def made_up_live_photo(tile: Size, seed: int) -> LivePhoto[Photo]:
    """One with a photograph's spectrum, a little larger than a tile."""
    height, width = round(tile.height * _TILES[0]), round(tile.width * _TILES[1])
    size = Size(max(height, _LEAST_SIDE_PX), max(width, _LEAST_SIDE_PX))
    return simulate_live_photo(synthetic_photograph(size, seed=seed), seed=seed).map(Photo)


def policy_check(
    bundle: Bundle,
    settings: RestoreOptions,
    live: LivePhoto[ImageSource],
    backend: Backend,
    progress: Progress = SILENT,
) -> Check | None:
    """The PSNR between the photos of the policy in use and of ``per-step``, before the colour fix; informative.

    Returns:
        ``None`` for a policy that computes what ``per-step`` computes.
    """
    policy = settings.policy(bundle)
    if policy.exact:
        return None
    own, exact = (
        _stitched(bundle, replace(settings, reference=name, pad_small=True), live, backend, progress)
        for name in (str(policy), "per-step")
    )
    value = psnr_db(own, exact, peak=STITCHED_PEAK)
    return Check(
        name="policy.psnr_db",
        value=value if math.isfinite(value) else None,
        limit=None,
        unit="dB",
        better="higher",
        status="info",
        detail=f"the photo under {policy} against the same engines' under per-step",
    )


def _stitched(
    bundle: Bundle,
    settings: RestoreOptions,
    live: LivePhoto[ImageSource],
    backend: Backend,
    progress: Progress,
) -> np.ndarray:
    kept: dict[str, np.ndarray] = {}

    def observe(name: str, value: np.ndarray) -> None:
        if name == "photo.stitched":
            kept[name] = value

    restore(bundle, live, settings, observer=observe, backend=backend, progress=progress)
    return kept["photo.stitched"]
