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
from livemoments.runtime.inputs import ImageSource
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.restore import restore
from livemoments.validate.report_data import Check

STITCHED_PEAK = 2.0
"""Of stitched pixels, which lie in [-1, 1]."""


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
