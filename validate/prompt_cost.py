"""What another prompt costs: the reference's photo with the checkpoint's prompt and with the other one.

How many tokens upstream's prompt had is not known (docs/weights.md); this says what is at stake. Needs torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from livemoments.bundle import Bundle
from livemoments.distances import psnr_db
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import Prompt, load_reference, read_prompt
from livemoments.reference.layout import locate_prompt
from livemoments.runtime.inputs import ImageSource, load_inputs
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.validate.policy_cost import STITCHED_PEAK
from livemoments.validate.reference_photo import restore_like_runtime
from livemoments.validate.report_data import Check


def prompt_check(
    bundle: Bundle,
    checkpoint: Path,
    other: Path,
    settings: RestoreOptions,
    live: LivePhoto[ImageSource],
    progress: Progress = SILENT,
) -> Check:
    """The PSNR between the reference's photos with the two prompts, before the colour fix; informative.

    Args:
        bundle: gives tile sizes, overlap, steps and policy, where the settings do not.
        checkpoint: the networks, and the one prompt.
        other: a folder with the other prompt, as ``livemoments make-prompt`` writes it.
        settings: seed, steps, policy and tile size.
        live: what is restored.
        progress: where to report.

    Raises:
        CheckpointError: a file is missing or damaged, or the prompt has another width than the networks take.
        ImageError: an image cannot be read.
        ResourceError: out of memory.
    """
    tokens, pooled = locate_prompt(other)
    reference = load_reference(checkpoint, progress=progress)
    own = reference.prompt
    files = replace(reference.files, prompt_embeds=tokens, pooled_prompt_embeds=pooled)
    theirs = read_prompt(files, reference.configs.transformer)
    inputs = load_inputs(live.frame, live.photo, live.photo_frame)
    manifest = bundle.manifest
    sizes = bundle.tile_sizes if settings.tile is None else (settings.tile,)
    plan = plan_balanced(inputs.size, sizes, manifest.overlap, pad_small=True)

    def stitched(prompt: Prompt) -> np.ndarray:
        restored = restore_like_runtime(
            replace(reference, prompt=prompt),
            inputs,
            plan,
            steps=settings.steps or manifest.schedule.default_steps,
            seed=settings.seed,
            policy=str(settings.policy(bundle)),
            progress=progress,
        )
        pixels: np.ndarray = restored.stitched.numpy()
        return pixels

    value = psnr_db(stitched(own), stitched(theirs), peak=STITCHED_PEAK)
    return Check(
        name="prompt.psnr_db",
        value=value if math.isfinite(value) else None,
        limit=None,
        unit="dB",
        better="higher",
        status="info",
        detail=f"the reference's photo with T = {theirs.tokens.shape[1]} of {other.name} against the checkpoint's own "
        f"prompt, T = {own.tokens.shape[1]}",
    )
