"""The parity ladder: an engine against a recording of the reference, from blocks to the whole photo, without torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.graphs.float_keys_values import FloatKeysValues
from livemoments.limits import PrecisionLimits, load_limits
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend, to_host
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import FlowNetwork, Size, Stage
from livemoments.validate.ladder.graph_values.block_errors import block_errors
from livemoments.validate.ladder.graph_values.isolated_errors import IsolatedError, IsolatedErrors
from livemoments.validate.ladder.recorded_conditions import check_fits, choose_image, limits_for, restore_as_recorded
from livemoments.validate.ladder.recorded_runs import STEPPED, RecordedRun, recorded_runs
from livemoments.validate.ladder.rungs import WorstDistance
from livemoments.validate.ladder.tensor_distance import tensor_distance
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import LEVELS, Level, Rung

_RUNS_PER_NETWORK = 2
"""Of the stages that take no step; the whole photo has all of them."""
_DIS = "of DIS, which rounding moves: the networks were given the recording's"
_OBSERVED: tuple[tuple[re.Pattern[str], Level, str, float | None], ...] = (
    (re.compile(r"tile\d+\.step(\d+)\.velocity"), "step", r"step\1.velocity", None),
    (re.compile(r"tile\d+\.(flow|z_init|z_out)"), "tile", r"\1", None),
    (re.compile(r"tile(\d+)\.decoded"), "tile", r"tile\1.decoded", 2.0),
    (re.compile(r"photo\.(stitched)"), "photo", r"\1", 2.0),
    (re.compile(r"photo\.(result)"), "photo", r"\1", 255.0),
)
"""Tensors of a restoration: name, level, the rung's name, for images the range of their values; in the rungs' order."""


def compare(
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
        levels: the rungs to compare.
        stages: those whose blocks and networks are compared.
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
        raise UsageError(f"there is no level '{unknown[0]}' of the parity ladder", fix=f"use {', '.join(LEVELS)}")
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
        restoration = _Restoration(recording, name)
        restore_as_recorded(bundle, recording, name, backend=engines, observer=restoration.observe, progress=progress)
        rungs += [rung for rung in restoration.rungs(held, bundle.manifest.model.flow) if rung.level in wanted]
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
    size = recording.meta.tile
    rungs = []
    present = _present(bundle, stages)
    with progress.task("Comparing networks", len(present)) as task:
        for stage in present:
            worst = WorstDistance()
            all_runs = recorded_runs(recording, image, bundle, stage)
            runs = list(all_runs if stage in STEPPED else islice(all_runs, _RUNS_PER_NETWORK))
            if runs:
                with FloatKeysValues(backend).open(bundle, stage, size) as engine:
                    for run in runs:
                        outputs = engine.run(engine.cast(run.case.inputs))
                        for name, expected in run.case.outputs.items():
                            worst.add(tensor_distance(to_host(outputs[name]), expected), f"{name} at {run}")
                        run.forget()
            why = "" if runs else "not recorded: record with --detail keys-values or finer"
            rungs.append(worst.rung("network", str(stage), size, limits.stage_rel_l2[str(stage)], note=why))
            task.advance(note=str(stage))
    return rungs


def _present(bundle: Bundle, stages: Collection[Stage]) -> list[Stage]:
    """The wanted stages that a bundle has, in the order in which a tile passes through them."""
    return [stage for stage in Stage if stage in stages and str(stage) in bundle.manifest.stages]


def _blocks(
    bundle: Bundle,
    recording: Recording,
    image: str,
    stages: Collection[Stage],
    limits: PrecisionLimits,
    progress: Progress,
) -> list[Rung]:
    """For every block a rung of its boundaries and one of what lies between them."""
    size = recording.meta.tile
    rungs: list[Rung] = []
    present = _present(bundle, stages)
    with progress.task("Comparing blocks and modules", len(present)) as task:
        for stage in present:
            graph = bundle.graph(stage, size)
            runs = list(recorded_runs(recording, image, bundle, stage))
            boundaries: dict[int, WorstDistance] = {}
            for error in block_errors(bundle, stage, graph, runs):
                worst, where = boundaries.setdefault(error.block, WorstDistance()), f"{error.part} at {error.run}"
                worst.add(error.accumulated, where)
                if error.isolated is not None:
                    worst.add(error.isolated, f"{where}, the block on its own")
            for block, worst in sorted(boundaries.items()):
                rungs.append(worst.rung("block", f"{stage}.block{block}", size, limits.block_rel_l2))
            if limits.module_rel_l2 is not None and limits.exact_rel_l2 is not None:
                rungs += _values(IsolatedErrors(bundle, stage, graph, limits), stage, size, runs)
            if stage in STEPPED and not boundaries:
                why = "not recorded: record with --detail blocks or modules"
                rungs.append(WorstDistance().rung("block", str(stage), size, None, note=why))
            task.advance(note=str(stage))
    return rungs


def _values(isolated: IsolatedErrors, stage: Stage, size: Size, runs: Sequence[RecordedRun]) -> Iterator[Rung]:
    """Of every block, and of what lies outside of them, the module or operation that comes closest to its limit."""
    by_block: dict[str, list[IsolatedError]] = {}
    for run in runs:
        if run.has_modules:
            for error in isolated.of(run):
                by_block.setdefault(error.value.block or "outside", []).append(error)
        run.forget()
    for block, errors in by_block.items():
        closest = max(errors, key=lambda error: error.ratio)
        where = f"{closest.value.what} at {closest.run}, the worst of {len(errors)} values"
        name = f"{stage}.{block.replace('transformer_blocks.', 'block')}.modules"
        yield WorstDistance(distance=closest.distance, where=where).rung("block", name, size, closest.limit)


class _Restoration:
    """An observer of a restoration: it compares what it is told with the recording, and keeps only the numbers."""

    def __init__(self, recording: Recording, image: str) -> None:
        self._recording = recording
        self._image = image
        self._worst: dict[tuple[int, str], WorstDistance] = {}
        self._corners = ""

    def observe(self, name: str, value: np.ndarray) -> None:
        """See :data:`livemoments.runtime.sampler.Observer`."""
        if not self._recording.has(self._image, name):
            return
        if name == "ref_patch_coords":
            moved = np.any(value != self._recording.read(self._image, name), axis=1)
            self._corners = f"{np.count_nonzero(moved)} of {len(moved)} reference tiles lie elsewhere"
        for place, (pattern, _, rung, peak) in enumerate(_OBSERVED):
            if match := pattern.fullmatch(name):
                new = WorstDistance("rel_l2" if peak is None else "psnr_db")
                worst = self._worst.setdefault((place, match.expand(rung)), new)
                distance = tensor_distance(value, self._recording.read(self._image, name), peak=peak)
                worst.add(distance, name.split(".")[0] if peak is None else "")

    def rungs(self, limits: PrecisionLimits, flow: FlowNetwork) -> list[Rung]:
        """Steps, then tiles, then the photo. DIS's flow is told, but has no limit (:func:`restore_as_recorded`)."""
        sizes = {"photo": self._recording.entry(self._image).size}
        rungs = []
        for (place, name), worst in sorted(self._worst.items(), key=lambda item: (item[0][0], _number(item[0][1]))):
            _, level, _, peak = _OBSERVED[place]
            limit: float | None = limits.photo_psnr_db if level == "photo" else limits.tile_psnr_db
            note = self._corners if level == "photo" else ""
            if peak is None:
                limit = limits.step_rel_l2
            if (name, flow) == ("flow", "dis"):
                limit, note = None, _DIS
            size = sizes.get(level, self._recording.meta.settings.tile)
            rungs.append(worst.rung(level, name, size, limit, note=note))
        return rungs


def _number(name: str) -> int:
    """The first number in a rung's name; names without one keep their order."""
    match = re.search(r"\d+", name)
    return int(match[0]) if match else 0
