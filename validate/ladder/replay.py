"""The parity ladder: an engine against a recording of the reference, from blocks to the whole photo, without torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import islice

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.limits import PrecisionLimits, load_limits
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import FlowNetwork, Size, Stage
from livemoments.validate.ladder.conditions import check_fits, choose_image, limits_for, restore_as_recorded
from livemoments.validate.ladder.local import LocalError, LocalErrors
from livemoments.validate.ladder.measures import measure
from livemoments.validate.ladder.recorded import STEPPED, Pass, passes
from livemoments.validate.ladder.rungs import Worst, nothing, rung_of
from livemoments.validate.ladder.walk import BlockWalk, BoundaryError
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import LEVELS, Level, Rung

_TILES_PER_NETWORK = 2
"""Of the stages that take no step; the whole photo has all of them."""
_SIGNED_PEAK = 2.0
"""Images in [-1, 1]."""
_BYTE_PEAK = 255.0
_DIS = "of DIS, which rounding moves: the networks were given the recording's"
_INNER = re.compile(r"tile(\d+)\.(?:step(\d+)\.)?(velocity|flow|z_init|z_out|decoded)")


def climb(
    bundle: Bundle,
    recording: Recording,
    *,
    image: str | None = None,
    levels: Collection[Level] = LEVELS,
    stages: Collection[Stage] = tuple(Stage),
    backend: Backend | None = None,
    limits: PrecisionLimits | None = None,
    progress: Progress = SILENT,
) -> tuple[Rung, ...]:
    """Compare a bundle with a recording, rung by rung.

    * ``block``: what leaves every block of the two transformers, fed with the network's recorded inputs; and what
      leaves every module and operation, each fed with the reference's own values. onnxruntime's CPU runs these parts,
      whatever ``backend`` is.
    * ``network``: every stage, fed with the reference's own inputs, at every recorded step.
    * ``step``, ``tile``, ``photo``: the bundle's whole restoration under the recording's conditions.

    Args:
        bundle: opened.
        recording: opened; of the same checkpoint, with the bundle's tile size, overlap and timesteps.
        image: a photo's name; by default the first of those recorded in most detail.
        levels: which rungs.
        stages: of which stages blocks and networks are compared.
        backend: what runs the engines; :class:`OrtBackend` on the CPU by default.
        limits: the shipped ones of the bundle's precision by default; a recording in float16 widens them.
        progress: where to report.

    Returns:
        The rungs, from blocks to the photo. What was not recorded is a rung without numbers that says so.

    Raises:
        UsageError: there is no such level.
        BundleError: the bundle does not fit the recording.
        FileError: no such photo, or a damaged recording.
        EngineError, ResourceError: an engine failed.
    """
    if unknown := sorted(set(levels) - set(LEVELS)):
        raise UsageError(f"'{unknown[0]}' is no level of the parity ladder", fix=f"use {', '.join(LEVELS)}")
    check_fits(bundle, recording)
    name = choose_image(recording, image)
    held = limits_for(limits or load_limits(bundle.manifest.precision), recording)
    engines = backend or OrtBackend()
    rungs: list[Rung] = []
    if "block" in levels:
        rungs += _blocks(bundle, recording, name, stages, held, progress)
    if "network" in levels:
        rungs += networks(bundle, recording, name, stages=stages, backend=engines, limits=held, progress=progress)
    if wanted := [level for level in LEVELS[2:] if level in levels]:
        found = _photo(bundle, recording, name, held, engines, progress)
        rungs += [rung for rung in found if rung.level in wanted]
    return tuple(rungs)


def networks(
    bundle: Bundle,
    recording: Recording,
    image: str,
    *,
    stages: Collection[Stage] = tuple(Stage),
    backend: Backend,
    limits: PrecisionLimits,
    progress: Progress = SILENT,
) -> list[Rung]:
    """One rung a stage: the worst output over tiles and steps, fed with the reference's own inputs."""
    size = recording.meta.settings.tile
    rungs = []
    present = _present(bundle, stages)
    with progress.task("Comparing networks", len(present)) as task:
        for stage in present:
            worst = Worst()
            found: Iterable[Pass] = passes(recording, image, bundle, stage)
            if stage not in STEPPED:
                found = islice(found, _TILES_PER_NETWORK)
            cases = list(found)
            if cases:
                _run_stage(bundle, stage, Size.parse(size), cases, backend, worst)
            why = "not recorded: record with --detail keys-values or finer"
            rungs.append(
                worst.rung("network", str(stage), size, limits.stage_rel_l2[str(stage)], note="" if cases else why)
            )
            task.advance(note=str(stage))
    return rungs


def _present(bundle: Bundle, stages: Collection[Stage]) -> list[Stage]:
    """The wanted stages that a bundle has, in the order in which a tile passes through them."""
    return [stage for stage in Stage if stage in stages and str(stage) in bundle.manifest.stages]


def _run_stage(bundle: Bundle, stage: Stage, size: Size, cases: list[Pass], backend: Backend, worst: Worst) -> None:
    with backend.open(bundle, stage, size) as engine:
        for given in cases:
            outputs = engine.run(engine.cast(given.case.inputs))
            for name, want in given.case.outputs.items():
                worst.add(measure(to_host(outputs[name]), want), f"{name} at {given}")
            given.forget()


def _blocks(
    bundle: Bundle,
    recording: Recording,
    image: str,
    stages: Collection[Stage],
    limits: PrecisionLimits,
    progress: Progress,
) -> list[Rung]:
    size = recording.meta.tile
    rungs: list[Rung] = []
    present = _present(bundle, stages)
    with progress.task("Comparing blocks and modules", len(present)) as task:
        for stage in present:
            graph = bundle.graph(stage, size)
            cases = list(passes(recording, image, bundle, stage))
            boundaries: dict[int, list[BoundaryError]] = {}
            inner: dict[str, list[LocalError]] = {}
            if stage in STEPPED and any(given.has("embed.hidden") or given.has("block0.hidden") for given in cases):
                with BlockWalk(bundle, stage, graph) as walk:
                    for given in cases:
                        for boundary in walk.of(given):
                            boundaries.setdefault(boundary.block, []).append(boundary)
                        given.forget()
            if limits.module_rel_l2 is not None and limits.exact_rel_l2 is not None:
                with LocalErrors(bundle, stage, graph, limits) as local:
                    for given in cases:
                        if given.has_modules:
                            for error in local.of(given):
                                inner.setdefault(error.landmark.block or "outside", []).append(error)
                        given.forget()
            rungs += [_boundary_rung(stage, size, block, found, limits) for block, found in sorted(boundaries.items())]
            rungs += [_inner_rung(stage, size, block, found) for block, found in inner.items()]
            if stage in STEPPED and not boundaries:
                why = "not recorded: record with --detail blocks or modules"
                rungs.append(nothing("block", str(stage), str(size), why))
            task.advance(note=str(stage))
    return rungs


def _boundary_rung(stage: Stage, size: Size, block: int, found: list[BoundaryError], limits: PrecisionLimits) -> Rung:
    """The worst of a block's boundaries, on the engine's own way there and with the block on its own."""
    worst = Worst()
    for error in found:
        worst.add(error.own, f"{error.part} at {error.given}")
        if error.alone is not None:
            worst.add(error.alone, f"{error.part} at {error.given}, the block on its own")
    return worst.rung("block", f"{stage}.block{block}", str(size), limits.block_rel_l2)


def _inner_rung(stage: Stage, size: Size, block: str, found: list[LocalError]) -> Rung:
    """The module or operation of a block that comes closest to its limit."""
    worst = max(found, key=lambda error: error.ratio)
    name = block.replace("transformer_blocks.", "block")
    return rung_of(
        "block",
        f"{stage}.{name}.modules",
        str(size),
        worst.distance,
        worst.limit,
        passed=not worst.is_bad,
        where=f"{worst.landmark.what} at {worst.given}, the worst of {len(found)} values",
    )


def _photo(
    bundle: Bundle,
    recording: Recording,
    image: str,
    limits: PrecisionLimits,
    backend: Backend,
    progress: Progress,
) -> list[Rung]:
    """The whole restoration, compared tensor by tensor as they come."""
    comparison = _Comparison(recording, image)
    restore_as_recorded(bundle, recording, image, backend=backend, observer=comparison.observe, progress=progress)
    return comparison.rungs(limits, bundle.manifest.model.flow)


class _Comparison:
    """An observer that compares what it is told with the recording, and keeps only the numbers."""

    def __init__(self, recording: Recording, image: str) -> None:
        self._recording = recording
        self._image = image
        self._steps: dict[int, Worst] = {}
        self._latents: dict[str, Worst] = {}
        self._tiles: dict[int, Worst] = {}
        self._photo: dict[str, Worst] = {}
        self._corners: str | None = None

    def observe(self, name: str, value: np.ndarray) -> None:
        """See :data:`livemoments.runtime.sampler.Observer`."""
        if not self._recording.has(self._image, name):
            return
        if name in ("photo.stitched", "photo.result"):
            peak = _SIGNED_PEAK if name == "photo.stitched" else _BYTE_PEAK
            worst = self._photo.setdefault(name.removeprefix("photo."), Worst("psnr_db"))
            worst.add(measure(value, self._read(name), peak=peak), "")
        elif name == "ref_patch_coords":
            moved = np.any(value != self._read(name), axis=1)
            self._corners = f"{np.count_nonzero(moved)} of {len(moved)} reference tiles lie elsewhere"
        elif found := _INNER.fullmatch(name):
            tile, step, tensor = int(found[1]), found[2], found[3]
            if tensor == "decoded":
                worst = self._tiles.setdefault(tile, Worst("psnr_db"))
                worst.add(measure(value, self._read(name), peak=_SIGNED_PEAK), "")
            elif tensor == "velocity":
                self._steps.setdefault(int(step), Worst()).add(measure(value, self._read(name)), f"tile{tile}")
            else:
                self._latents.setdefault(tensor, Worst()).add(measure(value, self._read(name)), f"tile{tile}")

    def _read(self, name: str) -> np.ndarray:
        return self._recording.read(self._image, name)

    def rungs(self, limits: PrecisionLimits, flow: FlowNetwork) -> list[Rung]:
        """Steps, then tiles, then the photo. DIS's flow is told, but has no limit (:func:`restore_as_recorded`)."""
        tile, photo = self._recording.meta.settings.tile, self._recording.entry(self._image).size
        rungs = [
            worst.rung("step", f"step{step}.velocity", tile, limits.step_rel_l2)
            for step, worst in sorted(self._steps.items())
        ]
        rungs += [
            worst.rung("tile", name, tile, None, note=_DIS)
            if (name, flow) == ("flow", "dis")
            else worst.rung("tile", name, tile, limits.step_rel_l2)
            for name, worst in self._latents.items()
        ]
        rungs += [
            worst.rung("tile", f"tile{index}.decoded", tile, limits.tile_psnr_db)
            for index, worst in sorted(self._tiles.items())
        ]
        rungs += [
            worst.rung("photo", name, photo, limits.photo_psnr_db, note=self._corners or "")
            for name, worst in self._photo.items()
        ]
        return rungs
