"""The parity gate: a written graph, run in onnxruntime, against the reference on the same inputs.

A graph passes when every output is finite, alive (no constant channel where the reference's is not: overflow in half
precision can give zeros instead of NaN) and within the limit of its stage and precision (``validate/limits.toml``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from livemoments import ort
from livemoments.distances import relative_l2
from livemoments.errors import EngineError, ParityError
from livemoments.export.options import Verify
from livemoments.export.plan import StageGraph
from livemoments.export.references import Arrays, Case
from livemoments.limits import load_limits
from livemoments.manifest import StageParity
from livemoments.stage_inputs import draw_input
from livemoments.types import Stage, TensorSpec

_ALIVE = 1e-3
"""A channel counts as alive in the reference when it varies by this share of the whole tensor."""


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU for a written graph.

    Raises:
        EngineError: onnxruntime does not accept the graph.
    """
    weights_bytes = sum(file.stat().st_size for file in path.parent.iterdir() if file.suffix != ".onnx")
    try:
        return ort.open_session(path, ort.session_options(weights_bytes=weights_bytes))
    except Exception as error:  # onnxruntime raises whatever its C++ side does
        raise EngineError(f"{path}: onnxruntime does not load the exported graph ({error})") from None


def run(session: Any, inputs: Arrays, specs: Sequence[TensorSpec]) -> Arrays:
    """Run a session on float32 arrays, converted to the types of the graph's inputs."""
    feeds = {spec.name: np.ascontiguousarray(inputs[spec.name].astype(spec.dtype)) for spec in specs}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def points_to_compare(stage: Stage, points: int, verify: Verify) -> tuple[int, ...]:
    """The schedule's points at which a stage is compared: all, or the first and the last; 0 for those without a step.

    Args:
        stage: the stage.
        points: how many the schedule has.
        verify: ``full`` or ``sampled``.
    """
    last = points - 1 if stage in (Stage.REFERENCE, Stage.RESTORATION) else 0
    return tuple(range(last + 1)) if verify == "full" else tuple(sorted({0, last}))


def check_stage(plan: StageGraph, precision: str, cases: Iterable[Case], path: Path) -> StageParity:
    """Compare a written graph with the reference on every case; cases are computed as they are needed.

    For each case the reference has run before the graph is loaded, so the two are not in memory together at first.

    Returns:
        The worst output of the worst case, and the points that were compared.

    Raises:
        ParityError: an output is not finite, dead, or further from the reference than its limit.
    """
    session: Any = None

    def answer(inputs: Arrays) -> Arrays:
        nonlocal session
        session = session or open_session(path)
        return run(session, inputs, plan.inputs)

    return check_answers(plan.stage, plan.size, precision, cases, answer)


def check_answers(
    stage: Stage, size: str, precision: str, cases: Iterable[Case], answer: Callable[[Arrays], Mapping[str, np.ndarray]]
) -> StageParity:
    """The same for whatever computes a stage: ``answer`` turns a case's inputs into outputs.

    Raises:
        ParityError: as :func:`check_stage`.
    """
    limit = load_limits(precision).stage_rel_l2[str(stage)]
    worst, label, points = -1.0, "", []
    for case in cases:
        got = answer(case.inputs)
        where = "" if case.point is None else f" at schedule point {case.point}"
        if case.point is not None:
            points.append(case.point)
        for name, want in case.outputs.items():
            error = compare(got[name], want, f"stage '{stage}' ({size}), output '{name}'{where}", stage.channel_axis)
            if error > worst:
                worst, label = error, name if case.point is None else f"{name}@{case.point}"
    if worst > limit:
        raise ParityError(
            f"stage '{stage}' ({size}): output '{label}' is {worst:.3g} from the reference (relative L2), "
            f"the limit for {precision} is {limit:.3g}",
            fix="export with --precision fp32, and report the numbers if that fails too",
        )
    return StageParity(size=size, rel_l2=worst, limit=limit, output=label, points=tuple(points))


def compare(got: np.ndarray, want: np.ndarray, what: str, axis: int) -> float:
    """Relative L2 error of an output whose channels are along ``axis``.

    Raises:
        ParityError: it is not finite, or a channel is constant that is not constant in the reference.
    """
    if got.shape != want.shape:
        raise ParityError(f"{what}: has shape {got.shape}, the reference's is {want.shape}")
    wide = got.astype(np.float32)
    if not np.isfinite(wide).all():
        raise ParityError(f"{what}: holds NaN or infinity", fix="export with --precision fp32")
    dead = dead_channels(wide, want, axis)
    if dead:
        raise ParityError(
            f"{what}: {dead} channels are constant and the reference's are not", fix="export with --precision fp32"
        )
    return relative_l2(wide, want)


def dead_channels(got: np.ndarray, want: np.ndarray, axis: int) -> int:
    """How many channels (along ``axis``) are constant that are not constant in the reference."""
    others = tuple(i for i in range(want.ndim) if i != axis % want.ndim)
    alive = np.ptp(want, axis=others) > _ALIVE * float(want.std())
    return int(np.count_nonzero(alive & (np.ptp(got, axis=others) == 0)))


def random_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> Arrays:
    """Inputs of one tile for a graph, step 0: for the check without a reference."""
    rng = np.random.default_rng(seed)
    return {spec.name: draw_input(spec, rng) for spec in specs}


def check_finite_outputs(stage: Stage, outputs: Mapping[str, np.ndarray]) -> None:
    """The check of ``verify="finite"``: without a reference, outputs must be finite and not constant.

    Raises:
        ParityError: otherwise.
    """
    for name, value in outputs.items():
        wide = value.astype(np.float32)
        if not np.isfinite(wide).all() or np.ptp(wide) == 0:
            raise ParityError(f"stage '{stage}': output '{name}' is not finite, or constant")
