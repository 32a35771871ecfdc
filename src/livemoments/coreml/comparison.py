"""A device's own answers held against the interpreter's, graph by graph: what Apple's kernels make of the programs.

The interpreter computes what the programs say; a device may sum in float16, fuse, or place operators wrongly. Before
any number of speed or quality from a device is believed, its answers must be these.
"""

from __future__ import annotations

import os
import platform
import time

import msgspec
import numpy as np

from livemoments.bundle import Bundle
from livemoments.coreml.backend import INTERPRETER, TARGET, UNITS, CoreMlBackend
from livemoments.distances import relative_l2
from livemoments.errors import EngineError, UsageError
from livemoments.limits import load_limits
from livemoments.manifest import Graph
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import to_host
from livemoments.stage_inputs import draw_input
from livemoments.types import Stage
from livemoments.version import version_of


class DeviceGraph(msgspec.Struct, frozen=True, kw_only=True):
    """One graph on the device and in the interpreter.

    Attributes:
        stage, size: which one.
        limit: what the distance may be: that of the stage's precision against its reference; ``None`` where a user's
            limits have none.
        load_s: loading its packages, which the system compiles for the device then.
        first_s, second_s: two runs of one tile; the first may still compile.
        output: the worst output.
        rel_l2: its distance from the interpreter's, relative L2.
        placement: operators by the device that the system prefers for them.
        error: why the device has no answers: a package does not load, run, or answers NaN.
    """

    stage: str
    size: str
    limit: float | None
    load_s: float = 0.0
    first_s: float = 0.0
    second_s: float = 0.0
    output: str = ""
    rel_l2: float | None = None
    placement: dict[str, int] = {}
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the device answers, and as the interpreter does, within the limit."""
        return self.rel_l2 is not None and (self.limit is None or self.rel_l2 <= self.limit)


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a device made of a bundle, with what is needed to read it elsewhere."""

    bundle: str
    compute_unit: str
    system: str
    machine: str
    versions: dict[str, str | None]
    recipe: str | None
    graphs: tuple[DeviceGraph, ...]

    @property
    def passed(self) -> bool:
        """Whether every graph's answers are within their limits."""
        return all(graph.passed for graph in self.graphs)


def check_comparable(bundle: Bundle) -> None:
    """Refuse what cannot be compared.

    Raises:
        UsageError: the bundle has no Core ML packages, or this is no Mac.
    """
    if bundle.manifest.target != TARGET:
        raise UsageError(
            f"{bundle.path} is made for {bundle.manifest.target}, and only Core ML packages run both on a Mac and in "
            "the interpreter",
            fix="leave --compute-unit and --compare-interpreter out, or export with --target coreml",
        )
    if platform.system() != "Darwin":
        raise UsageError(
            f"Core ML's devices are a Mac's, and this system is {platform.system()}",
            fix="run the command on a Mac with macOS 15 or later; without --compute-unit and --compare-interpreter the "
            "interpreter runs here",
        )


def compare_with_interpreter(
    bundle: Bundle,
    compute_unit: str,
    *,
    limits: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> DeviceReport:
    """Run every graph of a bundle on a device of this Mac and in the interpreter, one after the other, on equal inputs.

    Each stage's packages are loaded, run and unloaded before the next one's.

    Args:
        bundle: of Core ML packages.
        compute_unit: ``gpu``, ``ane``, ``all`` or ``cpu-only``.
        limits: a limits file instead of the shipped one.
        progress: a bar over the graphs.

    Raises:
        UsageError: the bundle has no Core ML packages, or this is no Mac.
        FileError: the limits cannot be read.
        EngineError: the interpreter does not run a package.
    """
    check_comparable(bundle)
    device, interpreter = CoreMlBackend(compute_unit), CoreMlBackend(INTERPRETER)
    graphs = [
        (Stage(name), load_limits(entry.precision, limits).stage_rel_l2.get(name), graph)
        for name, entry in bundle.manifest.stages.items()
        for graph in entry.graphs
    ]
    found = []
    with progress.task(f"comparing {compute_unit} with the interpreter", total=len(graphs)) as task:
        for stage, limit, graph in graphs:
            found.append(_compare(bundle, device, interpreter, stage, limit, graph))
            task.advance(note=f"{stage} {graph.size}")
    return DeviceReport(
        bundle=bundle.path.name,
        compute_unit=UNITS[compute_unit],
        system=f"{platform.system()} {platform.mac_ver()[0]}".strip(),
        machine=platform.machine(),
        versions={name: version_of(name) for name in ("livemoments-deploy", "coremltools", "torch")},
        recipe=bundle.manifest.recipe,
        graphs=tuple(found),
    )


def _compare(
    bundle: Bundle, device: CoreMlBackend, interpreter: CoreMlBackend, stage: Stage, limit: float | None, graph: Graph
) -> DeviceGraph:
    rng = np.random.default_rng(0)
    inputs = {spec.name: draw_input(spec, rng) for spec in graph.inputs}
    named = DeviceGraph(stage=str(stage), size=graph.size, limit=limit)
    with interpreter.open_files(bundle.path, stage, graph) as engine:
        wanted = engine.run(engine.cast(inputs))
    started = time.perf_counter()
    try:
        opened = device.open_files(bundle.path, stage, graph)
        with opened:
            times = [time.perf_counter()]
            for _ in range(2):
                answers = opened.run(opened.cast(inputs))
                times.append(time.perf_counter())
            placement = opened.placement()
    except EngineError as error:
        return msgspec.structs.replace(named, error=error.message)
    distances = {name: relative_l2(to_host(answers[name]), to_host(want)) for name, want in wanted.items()}
    output = max(distances, key=distances.__getitem__)
    return msgspec.structs.replace(
        named,
        load_s=round(times[0] - started, 4),
        first_s=round(times[1] - times[0], 4),
        second_s=round(times[2] - times[1], 4),
        output=output,
        rel_l2=distances[output],
        placement=placement,
    )
