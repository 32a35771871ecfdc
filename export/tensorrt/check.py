"""What a target cannot take of a bundle, by PyTorch module, before anything is built."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from livemoments.bundle import Bundle
from livemoments.engine_files import TITLES
from livemoments.errors import LiveMomentsError, MissingExtraError
from livemoments.export.tensorrt.modules import ModuleNames
from livemoments.export.tensorrt.options import DEFAULT_SM, BuildOptions, host_of
from livemoments.export.tensorrt.prepare import PreparedGraph, prepare
from livemoments.export.tensorrt.process import RefusedError, run_job
from livemoments.export.tensorrt.protocol import Failed, Job
from livemoments.export.tensorrt.refusals import Refusal, find_refusals
from livemoments.manifest import EngineLibrary
from livemoments.progress import SILENT, Progress
from livemoments.tensorrt.gpu import find_gpu
from livemoments.tensorrt.library import Library, load_library
from livemoments.types import Size, Stage

_NO_NODE = "-"


@dataclass(frozen=True, slots=True)
class GraphFinding:
    """What was found of one graph.

    Attributes:
        stage: whose.
        graph: its path in the bundle.
        size: the tiles it was checked for.
        layers: of the parsed network; ``None`` where the library was not asked, or refused it.
        refusals: what is refused; empty: the target takes the graph.
    """

    stage: Stage
    graph: str
    size: str
    layers: int | None
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """The answer for a bundle.

    Attributes:
        library: the target.
        version: of the installed library; ``None``: it is not installed.
        parsed: whether its parser was asked; otherwise the graphs alone were looked at.
        sm: compute capabilities that were checked for.
        graphs: one finding per graph and size.
    """

    library: EngineLibrary
    version: str | None
    parsed: bool
    sm: tuple[str, ...]
    graphs: tuple[GraphFinding, ...]

    @property
    def passed(self) -> bool:
        """Whether the target takes every graph."""
        return not any(graph.refusals for graph in self.graphs)


def check_target(
    bundle: Bundle,
    library: EngineLibrary,
    *,
    sm: tuple[str, ...] = (),
    stages: tuple[Stage, ...] | None = None,
    progress: Progress = SILENT,
) -> TargetCheck:
    """Look at every graph, and let the library's own parser read it where the library is installed.

    Args:
        bundle: an opened bundle.
        library: ``tensorrt`` or ``rtx``.
        sm: compute capabilities; empty: those of the GPU that is here for TensorRT, or
            :data:`~livemoments.export.tensorrt.options.DEFAULT_SM`.
        stages: only these.
        progress: receives the progress.

    Raises:
        UsageError: compute capabilities that the library does not know.
        EngineError: a graph cannot be read.
    """
    installed = _installed(library)
    gpu = find_gpu()
    targets = sm
    if installed is not None and library == "rtx":
        targets = host_of(installed, BuildOptions(library, sm), gpu).sm
    elif not targets:
        targets = DEFAULT_SM if library == "rtx" else () if gpu is None else (gpu.sm,)
    asked = installed if library == "rtx" or gpu is not None else None
    wanted = [s for s in Stage if str(s) in bundle.manifest.stages and (stages is None or s in stages)]
    graphs = [(stage, size) for stage in wanted for size in bundle.tile_sizes]
    found = []
    with progress.task(f"Checking for {TITLES[library]}", total=len(graphs)) as task:
        for stage, size in graphs:
            graph = bundle.graph(stage, size)
            prepared = prepare(bundle.path / graph.path, size, batch=1)
            refusals = find_refusals(prepared.model, targets)
            layers = None
            if asked is not None:
                layers, more = _parse(asked, prepared, stage, size, {refusal.module for refusal in refusals})
                refusals += more
            found.append(GraphFinding(stage, graph.path, str(size), layers, tuple(refusals)))
            task.advance(note=f"{stage} {size}")
    version = None if installed is None else installed.version
    return TargetCheck(library, version, asked is not None, targets, tuple(found))


def _installed(name: EngineLibrary) -> Library | None:
    with contextlib.suppress(MissingExtraError):
        return load_library(name)
    return None


def _parse(
    library: Library, prepared: PreparedGraph, stage: Stage, size: Size, known: set[str]
) -> tuple[int | None, list[Refusal]]:
    """Layers, and what the parser refuses beyond the modules that are known to be refused."""
    job = Job(library=library.name, graph=str(prepared.path), size=str(size), batch=1)
    try:
        return run_job(job, f"stage '{stage}' ({size})").layers, []
    except RefusedError as error:
        found = _told(error.failed, ModuleNames(prepared.model))
        return None, [refusal for refusal in found if refusal.module not in known]
    except LiveMomentsError as error:  # the parser died: nothing it could name
        return None, [] if known else [Refusal(_NO_NODE, _NO_NODE, error.message)]


def _told(failed: Failed, names: ModuleNames) -> list[Refusal]:
    told = [Refusal(names.of_name(one.node) or _NO_NODE, one.operator, one.message) for one in failed.troubles]
    return told or [Refusal(_NO_NODE, _NO_NODE, "; ".join(failed.messages))]
