"""Write one stage of a bundle of Core ML packages with its linears compressed, a process for each package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from livemoments.bundle import Bundle
from livemoments.coreml.names import files_of, packages_of
from livemoments.coreml.package import Package
from livemoments.export.coreml.process import run_job
from livemoments.graphs.linears import LinearId
from livemoments.manifest import Graph, StageEntry
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.calibrate.result import LinearStats
from livemoments.quantize.packages.compress import Target
from livemoments.quantize.packages.linears import PackageLinear, find_linears, named_as_in_packages, stage_packages
from livemoments.quantize.packages.worker import Job
from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.input_ranges import INT8_MAX, StatsOf, input_range, symmetric_scale
from livemoments.types import Stage

_WORKER = "livemoments.quantize.packages.worker"
_LEAST_SCALE = float(np.finfo(np.float16).tiny)


def compress_stage(
    bundle: Bundle, folder: Path, stage: Stage, recipe: Recipe, mix: Mix, stats: Mapping[LinearId, LinearStats] | None
) -> StageEntry:
    """Compress every package of a stage; their names stay.

    Args:
        bundle: the source.
        folder: the new bundle's folder.
        stage: the stage.
        recipe: how its linears are compressed.
        mix: which of them are.
        stats: what calibration saw; only ``Action.INT8_STATIC`` reads it.

    Returns:
        The stage's entry, without parity.

    Raises:
        EngineError: coremltools does not compress a package, or changed something else.
        UsageError: the calibration lacks a linear.
        ResourceError: memory ran out.
    """
    known = None if stats is None else named_as_in_packages(stats)
    for path in stage_packages(bundle, stage):
        package = Package.open(path)
        targets = {
            name: tuple(
                _target(linear, recipe, known) for linear in find_linears(function, str(stage)) if _on(linear, mix)
            )
            for name, function in package.functions.items()
        }
        placed = folder / path.relative_to(bundle.path)
        placed.parent.mkdir(parents=True, exist_ok=True)
        job = Job(source=str(path), package=str(placed), targets=targets, recipe=recipe)
        with tempfile.TemporaryDirectory(prefix="livemoments-") as work:
            run_job(_WORKER, job, Path(work), f"stage '{stage}' ({path.name})")
    entry = bundle.stage(stage)
    return msgspec.structs.replace(
        entry, precision=recipe.precision, parity=(), graphs=tuple(_listed(graph, folder) for graph in entry.graphs)
    )


def _listed(graph: Graph, folder: Path) -> Graph:
    """The graph with the files that its packages have now: coremltools writes others of a program that it read."""
    packages = packages_of(folder, (graph.path, *graph.weights))
    path, *weights = [file for package in packages for file in files_of(folder, package)]
    return msgspec.structs.replace(graph, path=path, weights=tuple(weights))


def _on(linear: PackageLinear, mix: Mix) -> bool:
    return mix.get(linear.id, Action.KEEP) is not Action.KEEP


def _target(linear: PackageLinear, recipe: Recipe, stats: StatsOf | None) -> Target:
    if not recipe.action.needs_calibration:
        return Target(linear.constant)
    low, high = input_range(stats, linear.id, per_point=False)
    return Target(linear.constant, max(float(symmetric_scale(low, high, INT8_MAX)[0]), _LEAST_SCALE))
