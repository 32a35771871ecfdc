"""Where an engine leaves the reference: the first block, module and ONNX node past the limit.

Three questions, one after the other, for each transformer:

1. Which block? Boundaries in order (``graph_values/block_errors.py``). Each block is fed with what entered the
   reference's, so that its error is its own: past ``block_rel_l2`` it is suspect. Where the recording lacks what enters
   a block, the accumulated error decides: the first boundary past the limit is suspect if its error is also at least
   :data:`JUMP` times that of the boundary before; errors that grow slowly from block to block are rounding, and
   nobody's fault.
2. Which module? Inside that block every comparable value (``graph_values/comparable_values.py``), each fed with the
   reference's values, in the graph's order. If no block stands out, those of all blocks are compared: in float16 and
   int8 a wrong operation can hide in a block's rounding, not in its own, for it is computed in float32.
3. Which node? The nodes between the values before and the bad one; those that give something recognised as right are
   cleared. Of what is left the product with a weight is named, or else the first; ``detail`` says how many there were.

The other stages have no blocks: the network's error (:func:`networks`), then their modules, then the node.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from livemoments.bundle import Bundle
from livemoments.limits import PrecisionLimits, load_limits
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import Stage
from livemoments.validate.ladder.compare import networks
from livemoments.validate.ladder.graph_values.block_errors import BlockError, block_errors, nan_last
from livemoments.validate.ladder.graph_values.isolated_errors import IsolatedError, IsolatedErrors
from livemoments.validate.ladder.recorded_conditions import check_fits, choose_image, limits_for
from livemoments.validate.ladder.recorded_runs import STEPPED, RecordedRun, recorded_runs
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import Bisection, Rung, Suspect, finite_number

JUMP = 5.0
"""Error of a boundary over that of the one before, from which on a block is suspect and rounding is not."""
_suspect = functools.partial(Suspect, block=None, module=None, node=None, op=None, output=None)


@dataclass(frozen=True, slots=True)
class _Search:
    """The search in one stage: its recorded runs, the errors of its blocks, and the rung of the whole network."""

    stage: Stage
    network: Rung
    runs: list[RecordedRun]
    boundaries: list[BlockError]
    limits: PrecisionLimits

    @property
    def has_modules(self) -> bool:
        return any(run.has_modules for run in self.runs)

    def result(self, bundle: Bundle, recording: Recording) -> tuple[Suspect | None, str]:
        """The suspect and what to say about it."""
        suspect = first_suspect(self.boundaries, self.limits)
        if self.has_modules and self.limits.module_rel_l2 is not None and self.limits.exact_rel_l2 is not None:
            graph = bundle.graph(self.stage, recording.meta.tile)
            isolated = IsolatedErrors(bundle, self.stage, graph, self.limits)
            error = self._first_bad_value(isolated, suspect)
            if error is not None:
                return self._node(isolated, error)
        if suspect is not None:
            return self._block(suspect)
        return (None, "") if self.network.status != "fail" else self._whole_network()

    def _first_bad_value(self, isolated: IsolatedErrors, suspect: BlockError | None) -> IsolatedError | None:
        """The first bad value: of the suspect's block; of the whole graph if there is no suspect, or none in it."""
        with_modules = [run for run in self.runs if run.has_modules]
        if suspect is not None:
            run = suspect.run if suspect.run.has_modules else with_modules[0]
            errors = isolated.of(run, block=f"transformer_blocks.{suspect.block}")
            if (bad := next((error for error in errors if error.is_bad), None)) is not None:
                return bad
        firsts: list[IsolatedError] = []
        for run in with_modules:
            firsts += islice((error for error in isolated.of(run) if error.is_bad), 1)
            run.forget()
        return min(firsts, key=isolated.place, default=None)

    def _node(self, isolated: IsolatedErrors, error: IsolatedError) -> tuple[Suspect, str]:
        faulty = isolated.find_faulty_node(error)
        nodes, value, run = isolated.network.nodes, error.value, error.run
        node = nodes[faulty.index]
        entering = [
            other.accumulated.rel_l2
            for other in self.boundaries
            if other.run.prefix == run.prefix and f"transformer_blocks.{other.block + 1}" == value.block
        ]
        suspect = _suspect(
            stage=str(self.stage),
            point=run.point,
            rel_l2=finite_number(error.distance.rel_l2),
            limit=error.limit,
            before=finite_number(max(entering, key=nan_last, default=0.0)),
            block=value.block,
            module=isolated.module_of(faulty.index) or (value.module if " the " not in f" {value.what}" else None),
            node=node.name or None,
            op=node.op_type,
            output=faulty.output,
        )
        rest = [nodes[index] for index in faulty.remaining if index != faulty.index]
        detail = f"{value.what} of stage '{self.stage}' at {run}: "
        if rest:
            others = ", ".join(f"{other.op_type} '{other.name}'" for other in rest[:4])
            detail += (
                f"{len(rest) + 1} nodes lie between what is right and what is wrong; besides {node.op_type} "
                f"'{node.name}': {others}{', …' if len(rest) > 4 else ''}"
            )
        else:
            detail += (
                f"fed with the reference's values, {node.op_type} '{node.name}' is the only node that can be wrong"
            )
        if value.name in isolated.values.tables:
            bad, compared = isolated.bad_tables(run)
            detail += f"; {bad} of {compared} AdaLN tables of the stage give wrong rows at this step"
        return suspect, detail

    def _block(self, error: BlockError) -> tuple[Suspect, str]:
        suspect = _suspect(
            stage=str(self.stage),
            point=error.run.point,
            rel_l2=finite_number(error.worst),
            limit=self.limits.block_rel_l2 or 0.0,
            before=finite_number(0.0 if error.isolated is not None else _error_before(error, self.boundaries)),
            block=f"transformer_blocks.{error.block}",
        )
        why = "no module is named, for none was recorded; record with --detail modules"
        if self.has_modules:
            why = "every module and operation of the block is within its limit, so only the block is named"
        return suspect, f"stage '{self.stage}': {why}"

    def _whole_network(self) -> tuple[Suspect, str]:
        where = self.network.where
        suspect = _suspect(
            stage=str(self.stage),
            point=next((run.point for run in self.runs if where.endswith(str(run))), None),
            output=where.split(" at ", 1)[0] or None,
            rel_l2=self.network.rel_l2,
            limit=self.network.limit or 0.0,
            before=0.0,
        )
        why = ", but no part of it on its own: its errors add up, or the engine joins parts in a way that is wrong"
        if self.stage in STEPPED and not self.boundaries:
            why = "; no block is named, for no block was recorded: record with --detail blocks or modules"
        elif not self.has_modules:
            no_block = "no block stands out, and " if self.stage in STEPPED else ""
            why = f"; {no_block}no module was recorded: record with --detail modules"
        return suspect, f"stage '{self.stage}' is past its limit ({where}){why}"


def bisect(
    bundle: Bundle,
    recording: Recording,
    *,
    image: str | None = None,
    stages: Collection[Stage] = tuple(Stage),
    backend: Backend | None = None,
    limits: PrecisionLimits | None = None,
    progress: Progress = SILENT,
) -> Bisection:
    """Find where a bundle leaves the reference.

    Args:
        bundle: opened.
        recording: opened; with detail ``modules`` a node is named, with ``blocks`` a block, else a stage.
        image: a photo's name; by default the first of those recorded in most detail.
        stages: where to search.
        backend: what runs whole stages; :class:`OrtBackend` on the CPU by default. Parts of stages run in
            onnxruntime on the CPU.
        limits: the shipped ones of the bundle's precision by default.
        progress: where to report.

    Returns:
        At most one suspect a stage, in the order in which a tile passes through them: the first is where to look, for
        later stages are fed with the reference's own inputs and are suspects of their own.

    Raises:
        BundleError: the bundle does not fit the recording.
        FileError: no such photo, or a damaged recording.
        EngineError, ResourceError: an engine failed.
    """
    check_fits(bundle, recording)
    name = choose_image(recording, image)
    held = limits_for(limits or load_limits(bundle.manifest.precision), recording)
    engines = backend or OrtBackend()
    rungs = networks(bundle, recording, name, stages=stages, backend=engines, limits=held, progress=progress)
    suspects, details, boundaries = [], [], 0
    with progress.task("Searching for the first fault", len(rungs)) as task:
        for rung in rungs:
            stage = Stage(rung.name)
            runs = list(recorded_runs(recording, name, bundle, stage))
            errors = block_errors(bundle, stage, bundle.graph(stage, recording.meta.tile), runs)
            suspect, detail = _Search(stage, rung, runs, errors, held).result(bundle, recording)
            suspects += [suspect] if suspect is not None else []
            details += [detail] if detail else []
            boundaries += len(errors)
            task.advance(note=str(stage))
    if not suspects and not details:
        details = ["every part is within its limit"]
    return Bisection(suspects=tuple(suspects), boundaries=boundaries, detail="; ".join(details))


def first_suspect(boundaries: Sequence[BlockError], limits: PrecisionLimits) -> BlockError | None:
    """The worst error of the first block that is suspect; ``None`` if none is."""
    limit = limits.block_rel_l2
    if limit is None:
        return None
    bad = [error for error in boundaries if _is_suspect(error, boundaries, limit)]
    first = min((error.block for error in bad), default=None)
    return max((error for error in bad if error.block == first), key=lambda error: nan_last(error.worst), default=None)


def _is_suspect(error: BlockError, boundaries: Sequence[BlockError], limit: float) -> bool:
    if error.isolated is not None:
        return not error.isolated.rel_l2 <= limit
    if error.accumulated.rel_l2 <= limit:
        return False
    before = _error_before(error, boundaries)
    return before is None or not error.accumulated.rel_l2 < JUMP * before


def _error_before(error: BlockError, boundaries: Sequence[BlockError]) -> float | None:
    """The accumulated error of what enters a boundary's block; ``None`` for the first block."""
    earlier = [
        other.accumulated.rel_l2 for other in boundaries if other.run is error.run and other.block == error.block - 1
    ]
    return max(earlier, key=nan_last, default=None)
