"""The network rung with a checkpoint at hand: every stage at every tile size and every point of the schedule.

Inputs are made up (natural spectra, realistic magnitudes) and the reference computes the outputs there and then; what a
recording holds of real photos is compared by :mod:`livemoments.validate.ladder.compare`. Needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable

from livemoments.bundle import Bundle, hash_file
from livemoments.errors import BundleError
from livemoments.export.references import Case, References
from livemoments.graphs.float_keys_values import FloatKeysValues
from livemoments.limits import PrecisionLimits
from livemoments.progress import SILENT, Progress
from livemoments.reference.checkpoint import read_configs, read_prompt
from livemoments.reference.layout import CheckpointFiles
from livemoments.runtime.backends.base import Backend, to_host
from livemoments.types import Size, Stage
from livemoments.validate.ladder.recorded_runs import STEPPED
from livemoments.validate.ladder.rungs import WorstDistance
from livemoments.validate.ladder.tensor_distance import tensor_distance
from livemoments.validate.report_data import Rung


def check_source(bundle: Bundle, files: CheckpointFiles, progress: Progress = SILENT) -> None:
    """Refuse a bundle that was not exported from a checkpoint.

    Raises:
        BundleError: naming the file that differs, or what estimates the flow.
    """
    if bundle.manifest.model.flow != files.flow:
        raise BundleError(
            bundle.path,
            f"was exported with flow: {bundle.manifest.model.flow}, this checkpoint says {files.flow}",
            fix="export again, or correct flow in the checkpoint's inference_config.yml",
        )
    walked = list(files.walk())
    with progress.task("hashing the checkpoint", total=len(walked)) as task:
        for name, path in walked:
            if bundle.manifest.source.files.get(name) != hash_file(path):
                raise BundleError(
                    bundle.path,
                    f"was not exported from this checkpoint: {path} is not the file it was made from",
                    fix="name the checkpoint that the bundle was exported from",
                )
            task.advance(note=name)


def all_points(
    bundle: Bundle,
    files: CheckpointFiles,
    *,
    limits: PrecisionLimits,
    seed: int,
    backend: Backend,
    progress: Progress = SILENT,
) -> tuple[Rung, ...]:
    """A rung for every stage of the bundle and tile size: the worst output over the schedule's points.

    Args:
        bundle: opened.
        files: the checkpoint it was exported from.
        limits: those of the bundle's precision.
        seed: decides the inputs, which are never those of the export's own check.
        backend: what runs the engines.
        progress: where to report.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        EngineError: an engine cannot be loaded, or its outputs are not finite.
        ResourceError: memory ran out.
    """
    manifest, configs = bundle.manifest, read_configs(files)
    prompt = read_prompt(files, configs.transformer)
    references = References(files, configs, prompt, manifest.schedule, manifest.kv_layout, seed=seed + 1)
    points = sorted({point for plan in manifest.schedule.plans.values() for point in plan})
    work = [(stage, size) for stage in Stage if str(stage) in manifest.stages for size in bundle.tile_sizes]
    rungs = []
    with progress.task("comparing stages", total=len(work)) as task:
        for stage, size in work:
            cases = (references.case(stage, size, point) for point in (points if stage in STEPPED else [0]))
            worst = _worst_output(bundle, stage, size, cases, backend)
            rungs.append(worst.rung("network", str(stage), size, limits.stage_rel_l2[str(stage)]))
            task.advance(note=f"{stage} {size}")
    return tuple(rungs)


def _worst_output(bundle: Bundle, stage: Stage, size: Size, cases: Iterable[Case], backend: Backend) -> WorstDistance:
    worst = WorstDistance()
    with FloatKeysValues(backend).open(bundle, stage, size) as engine:
        for case in cases:
            outputs = engine.run(engine.cast(case.inputs))
            for name, expected in case.outputs.items():
                label = name if case.point is None else f"{name} at point {case.point}"
                worst.add(tensor_distance(to_host(outputs[name]), expected), label)
    return worst
