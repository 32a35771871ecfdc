"""Where an engine leaves the reference: the first block, module and ONNX node past the limit.

Three questions, one after the other, for each transformer:

1. Which block? Boundaries in order, streamed (:mod:`walk`). Each block is fed with what entered the reference's, so
   that its error is its own: past ``block_rel_l2`` it is suspect. Where the recording lacks what enters a block, the
   engine's own way decides: the first boundary past the limit is suspect if its error is also at least :data:`JUMP`
   times that of the boundary before; errors that grow slowly from block to block are rounding, and nobody's fault.
2. Which module? Inside that block every comparable (:mod:`values`), each fed with the reference's values, in the
   graph's order. If no block stands out, those of all blocks are compared: in float16 and int8 a wrong operation can
   hide in a block's rounding, not in its own, for it is computed in float32.
3. Which node? The nodes between the values before and the bad one; those that give something recognised as right are
   cleared. Of what is left the product with a weight is named, or else the first; ``detail`` says how many there were.

The other stages have no blocks: the network's error (:func:`networks`), then their modules, then the node.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from livemoments.bundle import Bundle
from livemoments.limits import PrecisionLimits, load_limits
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import Stage
from livemoments.validate.ladder.block_errors import BlockError, BlockErrors
from livemoments.validate.ladder.compare import networks
from livemoments.validate.ladder.isolated_errors import IsolatedError, IsolatedErrors
from livemoments.validate.ladder.recorded_conditions import check_fits, choose_image, limits_for
from livemoments.validate.ladder.recorded_runs import STEPPED, RecordedRun, recorded_runs
from livemoments.validate.ladder.rungs import finite
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import Bisection, Rung, Suspect

JUMP = 5.0
"""Error of a boundary over that of the one before, from which on a block is suspect and rounding is not."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found in one stage: a suspect, what to say about it, how many boundaries were compared."""

    suspect: Suspect | None
    detail: str
    boundaries: int


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
    rungs = {
        rung.name: rung
        for rung in networks(
            bundle,
            recording,
            name,
            stages=stages,
            backend=backend or OrtBackend(),
            limits=held,
            progress=progress,
        )
    }
    found: list[_Found] = []
    with progress.task("Searching for the first fault", len(rungs)) as task:
        for stage in (stage for stage in Stage if str(stage) in rungs):
            found.append(_search(bundle, recording, name, stage, rungs[str(stage)], held))
            task.advance(note=str(stage))
    details = [one.detail for one in found if one.detail]
    suspects = tuple(one.suspect for one in found if one.suspect is not None)
    if not suspects and not details:
        details = ["every part is within its limit"]
    return Bisection(suspects=suspects, boundaries=sum(one.boundaries for one in found), detail="; ".join(details))


def _search(
    bundle: Bundle, recording: Recording, image: str, stage: Stage, network: Rung, limits: PrecisionLimits
) -> _Found:
    cases = list(recorded_runs(recording, image, bundle, stage))
    boundaries = _walk(bundle, recording, stage, cases) if stage in STEPPED else []
    suspect = _first_boundary(boundaries, limits)
    has_modules = any(given.has_modules for given in cases)
    if has_modules and limits.module_rel_l2 is not None and limits.exact_rel_l2 is not None:
        with IsolatedErrors(bundle, stage, bundle.graph(stage, recording.meta.tile), limits) as local:
            error = _first_module(local, cases, suspect)
            if error is not None:
                return _accused(local, error, boundaries)
    if suspect is not None:
        return _Found(
            _of_boundary(stage, suspect, boundaries, limits), _why_no_node(stage, has_modules), len(boundaries)
        )
    if network.status != "fail":
        return _Found(None, "", len(boundaries))
    why = _why_no_block(stage, network, boundaries, has_modules)
    return _Found(_of_network(stage, network, cases), why, len(boundaries))


def _walk(bundle: Bundle, recording: Recording, stage: Stage, cases: list[RecordedRun]) -> list[BlockError]:
    """Every recorded boundary; of each pass in the order of blocks."""
    found: list[BlockError] = []
    if not any(given.has("block0.hidden") for given in cases):
        return found
    with BlockErrors(bundle, stage, bundle.graph(stage, recording.meta.tile)) as walk:
        for given in cases:
            found += walk.of(given)
            given.forget()
    return found


def _first_boundary(boundaries: list[BlockError], limits: PrecisionLimits) -> BlockError | None:
    """The worst error of the first block that is suspect."""
    limit = limits.block_rel_l2
    if limit is None:
        return None
    bad = [error for error in boundaries if _is_suspect(error, boundaries, limit)]
    if not bad:
        return None
    first = min(error.block for error in bad)
    return max((error for error in bad if error.block == first), key=lambda error: _order(error.worst))


def _is_suspect(error: BlockError, boundaries: list[BlockError], limit: float) -> bool:
    if error.alone is not None:
        return not error.alone.rel_l2 <= limit
    if error.own.rel_l2 <= limit:
        return False
    before = _error_before(error, boundaries)
    return before is None or not error.own.rel_l2 < JUMP * before


def _error_before(error: BlockError, boundaries: list[BlockError]) -> float | None:
    """The error of what enters a boundary's block, on the engine's own way; ``None`` for the first block."""
    earlier = [
        other.own.rel_l2 for other in boundaries if other.given is error.given and other.block == error.block - 1
    ]
    return max(earlier, key=_order) if earlier else None


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _first_module(local: IsolatedErrors, cases: list[RecordedRun], suspect: BlockError | None) -> IsolatedError | None:
    """The first bad comparable: of the suspect's block; of the whole graph if there is no suspect, or none in it."""
    if suspect is not None:
        given = suspect.given if suspect.given.has_modules else next(case for case in cases if case.has_modules)
        for error in local.of(given, block=f"transformer_blocks.{suspect.block}"):
            if error.is_bad:
                return error
    first: IsolatedError | None = None
    place = local.places
    for given in cases:
        if not given.has_modules:
            continue
        for error in local.of(given):
            if error.is_bad:
                if first is None or place[error.comparable.value] < place[first.comparable.value]:
                    first = error
                break
        given.forget()
    return first


def _accused(local: IsolatedErrors, error: IsolatedError, boundaries: list[BlockError]) -> _Found:
    """The suspect with its module and node."""
    faulty = local.find_faulty_node(error)
    nodes = local.network.nodes
    node = nodes[faulty.node]
    comparable = error.comparable
    entering = [
        other.own.rel_l2
        for other in boundaries
        if other.given.prefix == error.given.prefix and f"transformer_blocks.{other.block + 1}" == comparable.block
    ]
    suspect = Suspect(
        stage=str(error.given.stage),
        point=error.given.point,
        block=comparable.block,
        module=local.module_of(faulty.node) or (comparable.module if " the " not in f" {comparable.what}" else None),
        node=node.name or None,
        op=node.op_type,
        output=faulty.output,
        rel_l2=finite(error.distance.rel_l2),
        limit=error.limit,
        before=finite(max(entering, key=_order)) if entering else 0.0,
    )
    rest = [nodes[index] for index in faulty.remaining if index != faulty.node]
    where = f"{comparable.what} of stage '{suspect.stage}' at {error.given}"
    detail = (
        f"{where}: fed with the reference's values, {node.op_type} '{node.name}' is the only node that can be wrong"
    )
    if rest:
        others = ", ".join(f"{other.op_type} '{other.name}'" for other in rest[:4])
        detail = (
            f"{where}: {len(rest) + 1} nodes lie between what is right and what is wrong; besides {node.op_type} "
            f"'{node.name}': {others}{', …' if len(rest) > 4 else ''}"
        )
    if comparable.value in local.map.tables:
        bad, all_of_them = local.bad_tables(error.given)
        detail += f"; {bad} of {all_of_them} AdaLN tables of the stage give wrong rows at this step"
    return _Found(suspect, detail, len(boundaries))


def _of_boundary(stage: Stage, error: BlockError, boundaries: list[BlockError], limits: PrecisionLimits) -> Suspect:
    before = 0.0 if error.alone is not None else _error_before(error, boundaries)
    return Suspect(
        stage=str(stage),
        point=error.given.point,
        block=f"transformer_blocks.{error.block}",
        module=None,
        node=None,
        op=None,
        output=None,
        rel_l2=finite(error.worst),
        limit=limits.block_rel_l2 or 0.0,
        before=None if before is None else finite(before),
    )


def _of_network(stage: Stage, network: Rung, cases: list[RecordedRun]) -> Suspect:
    point = next((given.point for given in cases if network.where.endswith(str(given))), None)
    return Suspect(
        stage=str(stage),
        point=point,
        block=None,
        module=None,
        node=None,
        op=None,
        output=network.where.split(" at ", 1)[0] or None,
        rel_l2=network.rel_l2,
        limit=network.limit or 0.0,
        before=0.0,
    )


def _why_no_node(stage: Stage, has_modules: bool) -> str:
    if has_modules:
        return (
            f"stage '{stage}': every module and operation of the block is within its limit, so only the block is named"
        )
    return f"stage '{stage}': no module is named, for none was recorded; record with --detail modules"


def _why_no_block(stage: Stage, network: Rung, boundaries: list[BlockError], has_modules: bool) -> str:
    start = f"stage '{stage}' is past its limit ({network.where})"
    if stage in STEPPED and not boundaries:
        return f"{start}; no block is named, for no block was recorded: record with --detail blocks or modules"
    if stage in STEPPED and not has_modules:
        return f"{start}; no block stands out, and no module was recorded: record with --detail modules"
    if not has_modules:
        return f"{start}; no module was recorded: record with --detail modules"
    return f"{start}, but no part of it on its own: its errors add up, or the engine joins parts in a way that is wrong"
