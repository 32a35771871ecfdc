"""The parity gate: a written graph, run in onnxruntime, against the reference on the same inputs.

A graph passes when every output is finite, alive (no constant channel where the reference's is not: overflow in half
precision can give zeros instead of NaN) and within the limit of its stage and precision (``validate/limits.toml``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.errors import EngineError, ParityError
from livemoments.export.references import Arrays, Case
from livemoments.limits import load_limits
from livemoments.manifest import StageParity
from livemoments.types import Stage, TensorSpec

_MAPPED_BYTES = 1 << 30
"""Weights beyond this stay mapped from the file: onnxruntime's further optimizations would copy them all."""
_IMAGE_STAGES = (Stage.FLOW, Stage.VAE_ENCODER, Stage.RESTORATION, Stage.VAE_DECODER)
"""Stages whose outputs are (B, C, H, W); the others' are tokens, channels last."""
_ALIVE = 1e-3
"""A channel counts as alive in the reference when it varies by this share of the whole tensor."""


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU for a written graph.

    Raises:
        EngineError: onnxruntime does not accept the graph.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    weights = sum(file.stat().st_size for file in path.parent.iterdir() if file.suffix != ".onnx")
    if weights > _MAPPED_BYTES:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises whatever its C++ side does
        raise EngineError(f"{path}: onnxruntime does not load the exported graph ({error})") from None


def run(session: Any, inputs: Arrays, specs: Sequence[TensorSpec]) -> Arrays:
    """Run a session on float32 arrays, converted to the types of the graph's inputs."""
    feeds = {spec.name: np.ascontiguousarray(inputs[spec.name].astype(spec.dtype)) for spec in specs}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def check_stage(
    stage: Stage, size: str, precision: str, cases: Sequence[Case], session: Any, specs: Sequence[TensorSpec]
) -> StageParity:
    """Compare a graph with the reference on every case.

    Returns:
        The worst output of the worst case.

    Raises:
        ParityError: an output is not finite, dead, or further from the reference than its limit.
    """
    limit = load_limits(precision).stage_rel_l2[str(stage)]
    worst = StageParity(size=size, rel_l2=-1.0, limit=limit, output="")
    for case in cases:
        got = run(session, case.inputs, specs)
        where = "" if case.point is None else f" at schedule point {case.point}"
        for name, want in case.outputs.items():
            axis = 1 if stage in _IMAGE_STAGES else -1
            error = compare(got[name], want, f"stage '{stage}' ({size}), output '{name}'{where}", axis)
            if error > worst.rel_l2:
                label = name if case.point is None else f"{name}@{case.point}"
                worst = StageParity(size=size, rel_l2=error, limit=limit, output=label)
    if worst.rel_l2 > limit:
        raise ParityError(
            f"stage '{stage}' ({size}): output '{worst.output}' is {worst.rel_l2:.3g} from the reference "
            f"(relative L2), the limit for {precision} is {limit:.3g}",
            fix="export with --precision fp32, and report the numbers if that fails too",
        )
    return worst


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
    scale = float(np.linalg.norm(want))
    return float(np.linalg.norm(wide - want)) / scale if scale else float(np.linalg.norm(wide))


def dead_channels(got: np.ndarray, want: np.ndarray, axis: int) -> int:
    """How many channels (along ``axis``) are constant that are not constant in the reference."""
    others = tuple(i for i in range(want.ndim) if i != axis % want.ndim)
    alive = np.ptp(want, axis=others) > _ALIVE * float(want.std())
    return int(np.count_nonzero(alive & (np.ptp(got, axis=others) == 0)))


def check_finite_outputs(stage: Stage, outputs: Mapping[str, np.ndarray]) -> None:
    """The check of ``verify='finite'``: no reference, only that a graph runs and its outputs are finite and not constant.

    Raises:
        ParityError: otherwise.
    """
    for name, value in outputs.items():
        wide = value.astype(np.float32)
        if not np.isfinite(wide).all() or np.ptp(wide) == 0:
            raise ParityError(f"stage '{stage}': output '{name}' is not finite, or constant")
