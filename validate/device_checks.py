"""A Mac's own answers against the interpreter's, as checks of a report: one for every graph of Core ML packages."""

from __future__ import annotations

import os

from livemoments.bundle import Bundle
from livemoments.coreml.backend import INTERPRETER, CoreMlBackend
from livemoments.coreml.comparison import DeviceGraph, check_comparable, compare_with_interpreter
from livemoments.errors import UsageError
from livemoments.progress import SILENT, Progress
from livemoments.validate.report_data import Check, Status


def check_provider(bundle: Bundle, provider: str) -> str:
    """The compute unit that a provider means on this Mac.

    Raises:
        UsageError: the bundle has no Core ML packages, this is no Mac, or the provider is the interpreter itself.
    """
    check_comparable(bundle)
    unit = CoreMlBackend(provider).provider
    if unit == INTERPRETER:
        raise UsageError(
            "the interpreter compared with itself says nothing",
            fix="leave --provider out (the GPU), or name gpu, ane, all or cpu-only",
        )
    return unit


def device_checks(
    bundle: Bundle, provider: str, *, limits: str | os.PathLike[str] | None = None, progress: Progress = SILENT
) -> tuple[Check, ...]:
    """Run every graph on the provider's compute unit and in the interpreter, on the same inputs.

    Args:
        bundle: of Core ML packages.
        provider: of the restoration; the default is the GPU.
        limits: a limits file instead of the shipped one.
        progress: a bar over the graphs.

    Returns:
        ``device.STAGE.SIZE.rel_l2`` for each graph: the relative L2 distance of its worst output, held to the limit of
        the stage's precision; a graph without an answer fails with the reason.

    Raises:
        UsageError: see :func:`check_provider`.
        FileError: the limits cannot be read.
        EngineError: the interpreter does not run a package.
    """
    unit = check_provider(bundle, provider)
    report = compare_with_interpreter(bundle, unit, limits=limits, progress=progress)
    return tuple(_check(graph, report.compute_unit) for graph in report.graphs)


def _check(graph: DeviceGraph, unit: str) -> Check:
    said = f"{unit}, output '{graph.output}', against the interpreter"
    status: Status = "fail"
    if graph.passed:
        status = "info" if graph.limit is None else "pass"
    return Check(
        name=f"device.{graph.stage}.{graph.size}.rel_l2",
        value=graph.rel_l2,
        limit=graph.limit,
        unit="rel_l2",
        better="lower",
        status=status,
        detail=said if graph.error is None else f"{unit} has no answer: {graph.error}",
    )
