"""From a recording, what goes into each stage of a bundle and what should come out; no torch needed.

Names and shapes are the graphs' (DESIGN "Stages"). What enters a stage is what entered the reference's network, so an
error of one stage does not pass to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from livemoments.errors import FileError
from livemoments.manifest import Model, Schedule
from livemoments.types import Stage
from livemoments.validate.recording.store import Recording

PER_BLOCK, STACKED = "per-block", "stacked"
_TIMESTEP_ROUNDING = 1e-3
"""Timesteps lie tens apart; those that differ by less are one."""


@dataclass(frozen=True, slots=True)
class RecordedCase:
    """One run of a stage.

    Attributes:
        inputs: by the graph's names, float32; without ``step``, which depends on the bundle's schedule.
        outputs: what the reference made of them, by the graph's names.
        timestep: that the network saw; ``None`` for stages that take no step. :func:`schedule_point` finds the bundle's
            index of it.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    timestep: float | None = None


def recorded_case(
    recording: Recording,
    image: str,
    tile: int,
    stage: Stage,
    *,
    step: int = 0,
    part: str = "lq",
    kv_layout: str = PER_BLOCK,
    model: Model | None = None,
) -> RecordedCase:
    """Inputs and outputs of one stage for one tile.

    Args:
        recording: opened.
        image: a photo's name.
        tile: a tile's index.
        stage: the stage that ran.
        step: for the transformers: the sampling step. The reference stage has a case at steps at which it ran
            (:meth:`RecordingSettings.kv_steps`).
        part: for the VAE's encoder: ``lq`` or ``ref``.
        kv_layout: how the bundle passes keys and values: ``per-block`` or ``stacked``.
        model: the bundle's, needed where the recording's own is ``None``.

    Raises:
        FileError: something that the case needs was not recorded.
    """
    name = f"tile{tile}"

    def read(tensor: str) -> np.ndarray:
        return recording.read(image, f"{name}.{tensor}")

    if stage == Stage.FLOW:
        return RecordedCase({"image1": read("ref_lq.image"), "image2": read("lq.image")}, {"flow": read("flow")})
    if stage == Stage.VAE_ENCODER:
        outputs = {"mean": read(f"{part}.posterior_mean"), "std": read(f"{part}.posterior_std")}
        return RecordedCase({"image": read(f"{part}.image")}, outputs)
    if stage == Stage.MOTION:
        return RecordedCase({"flow": read("flow")}, {"motion_bias": read("motion_bias")})
    if stage == Stage.VAE_DECODER:
        known = recording.meta.model or model
        if known is None:
            raise FileError(recording.path, "does not say how latents are scaled", fix="give the bundle's model")
        unscaled = read("z_out") / np.float32(known.latent_scaling) + np.float32(known.latent_shift)
        return RecordedCase({"latent": unscaled}, {"image": read("decoded")})
    settings = recording.meta.settings
    recorded_at = settings.kv_steps()[step]
    keys_values = _keys_values(recording, image, f"{name}.step{recorded_at}", kv_layout)
    if stage == Stage.REFERENCE:
        timestep = settings.schedule[settings.kv_sources()[step]].timestep
        return RecordedCase({"latent": read("z_ref")}, keys_values, timestep)
    inputs = {"latent": read(f"step{step}.z"), "motion_bias": read("motion_bias"), **keys_values}
    return RecordedCase(inputs, {"velocity": read(f"step{step}.velocity")}, settings.schedule[step].timestep)


def schedule_point(schedule: Schedule, timestep: float) -> int | None:
    """The index of a timestep among a bundle's schedule points; ``None`` if the bundle does not have it."""
    distances = [abs(point.timestep - timestep) for point in schedule.points]
    nearest = int(np.argmin(distances))
    return nearest if distances[nearest] <= _TIMESTEP_ROUNDING else None


def keys_values_names(tile_step: str, block: int) -> dict[str, tuple[str, str]]:
    """Under which names a block's keys (``k``) and values (``v``) are recorded: the image's, then the text's."""
    prefix = f"{tile_step}.kv.transformer_blocks.{block}.attn"
    return {part: (f"{prefix}.to_{part}", f"{prefix}.add_{part}_proj") for part in "kv"}


def _keys_values(recording: Recording, image: str, tile_step: str, layout: str) -> dict[str, np.ndarray]:
    pairs: list[list[np.ndarray]] = []
    while recording.has(image, (names := keys_values_names(tile_step, len(pairs)))["k"][0]):
        pairs.append([np.concatenate([recording.read(image, name) for name in names[p]], axis=1) for p in "kv"])
    if not pairs:
        raise FileError(
            recording.path,
            f"the keys and values of {tile_step} of '{image}' were not recorded",
            fix="record with --detail keys-values (or finer), or choose another tile or step",
        )
    if layout == STACKED:
        return {"reference_kv": np.stack([np.stack(pair) for pair in pairs])}
    return {f"reference_{p}.{block}": pair[i] for block, pair in enumerate(pairs) for i, p in enumerate("kv")}
