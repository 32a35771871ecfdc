"""One package, in a process of its own: ``python -m livemoments.export.coreml.worker JOB ANSWER``.

The converter holds several copies of the weights and never gives them back; a process that ends does. It also changes
registries of the whole process.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from livemoments.export.coreml.gate import PartParity
from livemoments.export.coreml.process import Answer, measured, serve
from livemoments.types import Size, Stage


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to convert.

    Attributes:
        checkpoint: folder or ``inference_config.yml``.
        precision: ``fp32`` or ``fp16``; Core AI's also one of :data:`livemoments.export.options.WEIGHT_BITS`.
        steps: the step counts of the schedule.
        stage, size: the graph; the size of the stage ``flow`` is its images'.
        span: the blocks [start, stop) of a transformer's chunk.
        package: where to write it.
        cases: files (npz) of inputs to check it with, one a point of the schedule; none are: it is not checked.
        carried: for each case the file of tokens that the chunk before left; empty for the first.
        left: for each case the file for the tokens that this chunk leaves.
        merged: packages of several sizes, by the functions' names, to join in one instead of converting anything.
    """

    checkpoint: str
    precision: str
    steps: tuple[int, ...]
    stage: Stage
    size: str
    span: tuple[int, int] | None
    package: str
    cases: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    merged: tuple[tuple[str, str], ...] = ()


def run(job: Job) -> Answer:
    """Convert, save and check one package.

    Raises:
        LiveMomentsError: it does not convert, or does not pass its check.
    """
    started = time.monotonic()
    path = Path(job.package)
    if job.merged:
        from livemoments.export.coreml.convert import merge

        merge(dict(job.merged), path)
        return measured(path, started)
    from livemoments.export.coreml.convert import convert
    from livemoments.export.coreml.modules import build
    from livemoments.export.opening import open_planner
    from livemoments.export.options import ExportOptions

    def part(precision: str) -> Any:
        options = ExportOptions(precision=precision, steps=job.steps)
        return build(open_planner(job.checkpoint, options), job.stage, Size.parse(job.size), job.span)

    own = part(job.precision)
    convert(own, path)
    parity = None
    if job.cases:
        exact = own if all(p.dtype.itemsize != 2 for p in own.module.parameters()) else part("fp32")
        parity = _check(job, path, own, exact)
    parameters = sum(parameter.numel() for parameter in own.module.parameters())
    return measured(path, started, parity, parameters)


def _check(job: Job, path: Path, own: Any, exact: Any) -> PartParity:
    from livemoments.export.coreml.gate import check_part

    span = "" if job.span is None else f", blocks {job.span[0]} to {job.span[1] - 1}"
    found = []
    for index, file in enumerate(job.cases):
        with np.load(file) as case:
            inputs = {name: case[name] for name in case.files}
        if job.carried:
            with np.load(job.carried[index]) as tokens:
                inputs |= {name: tokens[name] for name in tokens.files}
        parity, truth = check_part(path, own, exact, with_parts(inputs, own), f"stage '{job.stage}' ({job.size}){span}")
        found.append(parity)
        if job.left:
            names = [name for name in truth if name.split(".")[0] in ("image", "text")]
            np.savez(job.left[index], **{name: truth[name] for name in names})  # type: ignore[arg-type]
    worst = max(found, key=lambda parity: parity.drift)
    return PartParity(max(parity.unrounded for parity in found), worst.drift, worst.torch_drift)


def with_parts(inputs: dict[str, np.ndarray], part: Any) -> dict[str, np.ndarray]:
    """The inputs with those of whole tensors cut that the chunk takes a part of, and the step as Core ML takes it."""
    from livemoments.coreml.names import feature_name, parse_slice

    found = dict(inputs)
    if "step" in found:
        found["step"] = found["step"].reshape(1).astype(np.int32)
    for spec in part.inputs:
        if spec.name not in found:
            cut = parse_slice(feature_name(spec.name))
            assert cut is not None, spec.name
            found[spec.name] = found[cut[0]][cut[1] : cut[2]]
    return found


if __name__ == "__main__":
    serve(run, Job, *sys.argv[1:])
