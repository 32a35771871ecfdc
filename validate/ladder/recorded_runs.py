"""One pass of one stage as it was recorded: what enters its graph, what leaves it, and what lies between."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

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
        bundle: whose graph it is compared with: gives the layout of keys and values, and the schedule.
        stage: which.
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
        found = recorded_case(
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
            found.inputs["step"] = np.array(self.point, np.int64)
        return found

    @functools.cached_property
    def point(self) -> int | None:
        """The bundle's schedule point of this pass, ``None`` for stages that take no step.

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
        found = self._recording.read(self._image, f"{self.prefix}.{name}")
        if found.nbytes < _SMALL_BYTES:
            self._small[name] = found
        return found


def recorded_runs(
    recording: Recording, image: str, bundle: Bundle, stage: Stage, *, tiles: tuple[int, ...] | None = None
) -> Iterator[RecordedRun]:
    """Every recorded pass of a stage: of each tile, and of each step at which the stage ran, in that order.

    Those whose inputs or outputs were not recorded are left out.
    """
    meta, entry = recording.meta, recording.entry(image)
    for tile in tiles if tiles is not None else range(len(entry.tiles)):
        if not recording.has(image, f"tile{tile}.z_out"):
            continue
        if stage is Stage.VAE_ENCODER:
            for part in ("lq", "ref"):
                if recording.has(image, f"tile{tile}.{part}.image"):
                    yield RecordedRun(recording, image, tile, bundle, stage, part=part)
            continue
        if stage not in STEPPED:
            if all(recording.has(image, f"tile{tile}.{name}") for name in _NEEDS[stage]):
                yield RecordedRun(recording, image, tile, bundle, stage)
            continue
        kv_steps = meta.settings.kv_steps()
        for step in range(meta.settings.steps) if stage is Stage.RESTORATION else sorted(set(kv_steps)):
            blocks = range(bundle.manifest.model.num_blocks)
            parts = [keys_values_names(f"tile{tile}.step{kv_steps[step]}", block) for block in blocks]
            names = [name for part in parts for pair in part.values() for name in pair]
            if stage is Stage.RESTORATION:
                names += [f"tile{tile}.motion_bias", f"tile{tile}.step{step}.z"]
            if recording.has(image, *names):
                yield RecordedRun(recording, image, tile, bundle, stage, step=step)


_NEEDS: Mapping[Stage, tuple[str, ...]] = {
    Stage.FLOW: ("ref_lq.image", "lq.image", "flow"),
    Stage.MOTION: ("flow", "motion_bias"),
    Stage.VAE_DECODER: ("z_out", "decoded"),
}
