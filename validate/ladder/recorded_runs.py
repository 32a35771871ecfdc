"""One run of one stage as it was recorded: what enters its graph, what leaves it, and what lies between."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import BundleError
from livemoments.types import Stage
from livemoments.validate.recording.cases import RecordedCase, keys_values_names, recorded_case, schedule_point
from livemoments.validate.recording.store import Recording

STEPPED = (Stage.REFERENCE, Stage.RESTORATION)
_SMALL_BYTES = 1 << 20
"""Tensors below this (rows of AdaLN tables) are read once."""


class RecordedRun:
    """One run of a stage for one tile, and for the transformers at one step.

    Args:
        recording: opened.
        image: a photo's name.
        tile: a tile's index.
        bundle: the one that is compared: it gives the layout of keys and values, and the schedule.
        stage: the stage that ran.
        step: the sampling step, for the transformers.
        part: for the VAE's encoder: ``lq`` or ``ref``.
    """

    def __init__(
        self,
        recording: Recording,
        image: str,
        tile: int,
        bundle: Bundle,
        stage: Stage,
        *,
        step: int = 0,
        part: str = "lq",
    ) -> None:
        self.stage = stage
        self.tile = tile
        self.step = step if stage in STEPPED else None
        self._recording = recording
        self._image = image
        self._part = part
        self._bundle = bundle
        place = f"tile{tile}.step{step}" if stage in STEPPED else f"tile{tile}"
        self.prefix = f"{place}.{stage}"
        self._small: dict[str, np.ndarray] = {}

    def __str__(self) -> str:
        part = f".{self._part}" if self.stage is Stage.VAE_ENCODER else ""
        return f"tile{self.tile}{part}" if self.step is None else f"tile{self.tile}.step{self.step}"

    @functools.cached_property
    def case(self) -> RecordedCase:
        """Inputs and outputs by the graph's names; ``step`` is the bundle's schedule point.

        Raises:
            BundleError: the bundle has no such timestep.
            FileError: the recording lacks something.
        """
        case = recorded_case(
            self._recording,
            self._image,
            self.tile,
            self.stage,
            step=self.step or 0,
            part=self._part,
            kv_layout=self._bundle.manifest.kv_layout,
            model=self._bundle.manifest.model,
        )
        if self.point is not None:
            case.inputs["step"] = np.array(self.point, np.int64)
        return case

    @functools.cached_property
    def point(self) -> int | None:
        """The bundle's schedule point of this run, ``None`` for stages that take no step.

        Raises:
            BundleError: the bundle has no such timestep.
        """
        if self.step is None:
            return None
        settings = self._recording.meta.settings
        at = settings.kv_sources()[self.step] if self.stage is Stage.REFERENCE else self.step
        timestep = settings.schedule[at].timestep
        point = schedule_point(self._bundle.manifest.schedule, timestep)
        if point is None:
            raise BundleError(
                self._bundle.path,
                f"has no timestep {timestep:.2f}, at which the recording's step {at} was made",
                fix=f"export with --steps {settings.steps}, or record with the bundle's number of steps",
            )
        return point

    @property
    def has_modules(self) -> bool:
        """Whether what left the stage's modules was recorded."""
        return any(name.startswith("module.") for name in self._inner)

    @property
    def has_blocks(self) -> bool:
        """Whether what left the stage's blocks was recorded."""
        return any(name.startswith("block") for name in self._inner)

    def forget(self) -> None:
        """Drop the tensors that were read; they are read again when they are needed."""
        self.__dict__.pop("case", None)
        self._small.clear()

    def has(self, *names: str) -> bool:
        """Whether inner tensors were recorded; names lack the tile, the step and the stage: ``block3.hidden``."""
        return self._inner.issuperset(names)

    @functools.cached_property
    def _inner(self) -> frozenset[str]:
        if self.stage is Stage.VAE_ENCODER and self._part != "lq":  # inner tensors are the first encoding's
            return frozenset()
        start = f"{self.prefix}."
        names = self._recording.names(self._image)
        return frozenset(name.removeprefix(start) for name in names if name.startswith(start))

    def read(self, name: str) -> np.ndarray:
        """One inner tensor, float32."""
        if name in self._small:
            return self._small[name]
        value = self._recording.read(self._image, f"{self.prefix}.{name}")
        if value.nbytes < _SMALL_BYTES:
            self._small[name] = value
        return value


def recorded_runs(recording: Recording, image: str, bundle: Bundle, stage: Stage) -> Iterator[RecordedRun]:
    """Every recorded run of a stage: of each tile, and of each step at which the stage ran, in that order.

    Those whose inputs or outputs were not recorded are left out.
    """
    runs = list(_runs_of_a_tile(recording, bundle, stage))
    for tile in range(len(recording.entry(image).tiles)):
        for options, names in runs:
            if recording.has(image, *(f"tile{tile}.{name}" for name in ("z_out", *names))):
                yield RecordedRun(recording, image, tile, bundle, stage, **options)


def _runs_of_a_tile(recording: Recording, bundle: Bundle, stage: Stage) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """What tells the runs of a tile apart, and what must have been recorded of each."""
    if stage is Stage.VAE_ENCODER:
        yield from (({"part": part}, [f"{part}.image"]) for part in ("lq", "ref"))
    elif stage not in STEPPED:
        yield {}, _NEEDS[stage]
    else:
        kv_steps = recording.meta.settings.kv_steps()
        for step in range(len(kv_steps)) if stage is Stage.RESTORATION else sorted(set(kv_steps)):
            names = ["motion_bias", f"step{step}.z"] if stage is Stage.RESTORATION else []
            for block in range(bundle.manifest.model.num_blocks):
                for pair in keys_values_names(f"step{kv_steps[step]}", block).values():
                    names += pair
            yield {"step": step}, names


_NEEDS: Mapping[Stage, list[str]] = {
    Stage.FLOW: ["ref_lq.image", "lq.image", "flow"],
    Stage.MOTION: ["flow", "motion_bias"],
    Stage.VAE_DECODER: ["z_out", "decoded"],
}
