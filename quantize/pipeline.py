"""Quantize a bundle: plan, calibrate, rewrite and check one stage after the other, then the manifest.

Weights go from the source's files to the new ones one tensor at a time, so memory does not grow with the network until
the finished engines are run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from livemoments.bundle import Bundle, write_bundle
from livemoments.errors import MissingExtraError, ResourceError, UsageError
from livemoments.manifest import Manifest, StageParity
from livemoments.progress import SILENT, Progress
from livemoments.store.errors import disk_full, is_full
from livemoments.types import Stage
from livemoments.version import __version__

if TYPE_CHECKING:
    from livemoments.graphs.linears import Linear
    from livemoments.quantize.actions import LayerPlan
    from livemoments.quantize.calibration_result import CalibrationResult
    from livemoments.quantize.guards import StageSpeed
    from livemoments.quantize.recipes import Recipe

_TOOLS = ("onnx-ir", "onnxruntime", "numpy", "ml-dtypes")


@dataclass(frozen=True, slots=True)
class Quantized:
    """What quantizing gave.

    Attributes:
        bundle: the new bundle, opened.
        actions: how many linears became what, by action.
        speeds: of the stages that were timed; empty if the recipe is not meant for this machine's processor.
    """

    bundle: Bundle
    actions: Mapping[str, int]
    speeds: tuple[StageSpeed, ...]


def quantize_bundle(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe,
    **options: Any,
) -> Bundle:
    """:func:`quantize` for those who only want the bundle; the same options."""
    return quantize(bundle, output, recipe=recipe, **options).bundle


def quantize(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe,
    calibration: CalibrationResult | str | os.PathLike[str] | None = None,
    plan: LayerPlan | None = None,
    seed: int = 0,
    allow_slower: bool = False,
    check_speed: bool = True,
    verify: bool = True,
    work: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Quantized:
    """Quantize a bundle, and say what was measured.

    Args:
        bundle: a float bundle.
        output: the new bundle's folder.
        recipe: the name of a shipped recipe, a TOML file, or a recipe.
        calibration: a set of photos (a folder ``lr/``, ``ref/``), a saved calibration (a file), or its result.
        plan: what happens to each linear; ``None``: what the recipe says.
        seed: of calibration's noise.
        allow_slower: accept engines that are slower than the source's.
        check_speed: time the transformers against the source's, if the recipe is meant to be fast on a CPU.
        verify: run the new engines against the source's; without, neither parity nor speed is known.
        work: a folder that keeps what calibration saw of each photo; an interrupted call goes on from there.
        overwrite: replace an older bundle.
        progress: where to report.

    Raises:
        UsageError: a recipe that does not exist or would do nothing, a source that is quantized already, a calibration
            that is missing or does not fit.
        BundleError, FileError, ImageError: source, recipe or calibration set cannot be read.
        EngineError: an output is not finite, dead or saturated.
        ParityError: an output is too far from the source's.
        CheckFailedError: the result is slower than the source.
        OutputError: the destination exists or cannot be written.
        ResourceError: memory or disk ran out.
        MissingExtraError: the extra ``export`` is not installed.
    """
    _need_extra()
    from livemoments.quantize.guards import check_plan, check_source
    from livemoments.quantize.guards import check_speed as refuse_slower
    from livemoments.quantize.recipes import load_recipe, plan_layers
    from livemoments.quantize.write_stage import copy_stage, quantize_stage

    chosen = load_recipe(recipe)
    source = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    check_source(source, chosen)
    linears = _find_linears(source)
    actions = plan_layers(chosen, linears) if plan is None else plan
    check_plan(actions, chosen, source)
    with _resource_errors(Path(output)), write_bundle(output, overwrite=overwrite) as writer:
        observed = _calibration(source, chosen, calibration, actions, seed, work, progress)
        stats = None if observed is None else observed.stats
        entries = {}
        touched = _touched(source, chosen, actions)
        with progress.task("quantizing", total=len(source.manifest.stages)) as task:
            for name, entry in source.manifest.stages.items():
                if Stage(name) in touched:
                    entries[name] = quantize_stage(source, writer.folder, Stage(name), chosen, actions, stats)
                else:
                    copy_stage(source, writer.folder, entry)
                    entries[name] = entry
                task.advance(note=name)
        manifest = msgspec.structs.replace(
            source.manifest,
            producer=f"livemoments-deploy {__version__}",
            precision=chosen.precision,
            stages=entries,
            toolchain=source.manifest.toolchain | _toolchain(),
            recipe=chosen.name,
            calibration_sha256=None if observed is None else observed.sha256,
            calibration_seed=None if observed is None else observed.seed,
            files={},
        )
        speeds: tuple[StageSpeed, ...] = ()
        if verify:
            timed = check_speed and "cpu" in chosen.devices
            manifest, speeds = _verify(source, writer.folder, manifest, chosen, touched, timed, progress)
            refuse_slower(speeds, chosen, allow_slower=allow_slower)
        writer.commit(msgspec.structs.replace(manifest, files=writer.hash_files()))
    return Quantized(Bundle.open(output, verify_hashes=False), _count(actions), speeds)


def _need_extra() -> None:
    try:
        import ml_dtypes  # noqa: F401
        import onnx_ir  # noqa: F401
        import torch  # noqa: F401  (the exporter's passes, which are used here, import it)
    except ImportError as error:
        raise MissingExtraError("quantizing", "export", missing=error.name) from None


@contextlib.contextmanager
def _resource_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"out of memory while quantizing ({error})", fix="close other programs") from None
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_full(output) from None


def _find_linears(bundle: Bundle) -> list[Linear]:
    """The linears of every stage, from its first graph: other tile sizes have the same."""
    import onnx_ir as ir

    from livemoments.graphs.linears import find_linears

    found = []
    for name, entry in bundle.manifest.stages.items():
        found += find_linears(ir.load(bundle.path / entry.graphs[0].path), name)
    return found


def _calibration(
    bundle: Bundle,
    recipe: Recipe,
    calibration: CalibrationResult | str | os.PathLike[str] | None,
    plan: LayerPlan,
    seed: int,
    work: str | os.PathLike[str] | None,
    progress: Progress,
) -> CalibrationResult | None:
    from livemoments.quantize.calibration import calibrate
    from livemoments.quantize.calibration_result import CalibrationResult

    if calibration is None:
        if recipe.needs_calibration or any(action.needs_calibration for action in plan.values()):
            raise UsageError(
                f"recipe '{recipe.name}' needs a calibration set",
                fix="pass --calibration DIR, a folder with lr/ (frames) and ref/ (photos) of the same names",
            )
        return None
    if isinstance(calibration, CalibrationResult):
        found = calibration
    elif Path(calibration).is_file():
        found = CalibrationResult.load(calibration)
    else:
        found = calibrate(
            bundle,
            calibration,
            seed=seed,
            observer=recipe.observer,
            percentile=recipe.percentile,
            work=work,
            progress=progress,
        )
    found.check_fits(bundle)
    return found


def _touched(bundle: Bundle, recipe: Recipe, plan: LayerPlan) -> list[Stage]:
    """The stages that change, in the order in which a tile passes them."""
    from livemoments.quantize.actions import Action

    names = {linear.stage for linear, action in plan.items() if action is not Action.KEEP}
    if recipe.half:
        names |= {str(stage) for stage in Stage if stage is not Stage.FLOW}
    return [stage for stage in Stage if str(stage) in names and str(stage) in bundle.manifest.stages]


def _verify(
    source: Bundle,
    folder: Path,
    manifest: Manifest,
    recipe: Recipe,
    touched: list[Stage],
    timed: bool,
    progress: Progress,
) -> tuple[Manifest, tuple[StageSpeed, ...]]:
    """Compare and time the touched stages; the manifest with what was measured."""
    from livemoments.quantize.guards import compare_stage, time_stage
    from livemoments.quantize.sample_inputs import SampleInputs
    from livemoments.runtime.backends.ort import OrtBackend

    quantized = Bundle(folder, manifest)
    samples, backend = SampleInputs(source), OrtBackend()
    sizes = source.tile_sizes
    smallest = min(sizes, key=lambda size: size.height * size.width)
    entries, speeds = dict(manifest.stages), []
    with progress.task("comparing with the source", total=len(touched) * len(sizes)) as task:
        for stage in touched:
            parity: list[StageParity] = []
            for size in sizes:
                with contextlib.ExitStack() as stack:
                    before, after = (
                        stack.enter_context(backend.open(bundle, stage, size)) for bundle in (source, quantized)
                    )
                    parity.append(compare_stage(before, after, samples, stage, size, recipe.precision))
                    if timed and size == smallest and stage in (Stage.REFERENCE, Stage.RESTORATION):
                        _, inputs = next(samples.cases(stage, size))
                        speeds.append(time_stage(before, after, inputs, stage, size))
                task.advance(note=f"{stage} {size}")
            entries[str(stage)] = msgspec.structs.replace(entries[str(stage)], parity=tuple(parity))
    return msgspec.structs.replace(manifest, stages=entries), tuple(speeds)


def _count(plan: LayerPlan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for action in plan.values():
        counts[action.value] = counts.get(action.value, 0) + 1
    return counts


def _toolchain() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
