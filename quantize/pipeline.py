"""Quantize a bundle: decide, calibrate, rewrite and check one stage after the other, then the manifest.

Weights go from the source's files to the new ones one tensor at a time, so memory does not grow with the network until
the finished engines are run.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from livemoments.bundle import Bundle, write_bundle
from livemoments.errors import MissingExtraError, ResourceError, UsageError
from livemoments.manifest import Manifest, StageParity
from livemoments.progress import SILENT, Progress
from livemoments.quantize.options import QuantizeOptions
from livemoments.store.errors import disk_full, is_full
from livemoments.types import Stage
from livemoments.version import __version__

if TYPE_CHECKING:
    from livemoments.graphs.linears import Linear
    from livemoments.live_photo import LivePhoto
    from livemoments.quantize.acceptance import StageSpeed
    from livemoments.quantize.actions import Mix
    from livemoments.quantize.calibrate.observers import Observer
    from livemoments.quantize.calibrate.result import CalibrationResult
    from livemoments.quantize.recipes import Recipe
    from livemoments.quantize.search.chain import SearchResult
    from livemoments.runtime.image_files.photo import Photo

_TOOLS = ("onnx-ir", "onnxruntime", "numpy", "ml-dtypes", "coremltools")


@dataclass(frozen=True, slots=True)
class Quantized:
    """What quantizing gave.

    Attributes:
        bundle: the new bundle, opened.
        layers: how many linears became what, by action.
        speeds: the times of the stages that were timed; empty if the recipe is not meant for this machine's processor.
        search: how the mix was found, where there was a budget.
    """

    bundle: Bundle
    layers: Mapping[str, int]
    speeds: tuple[StageSpeed, ...]
    search: SearchResult | None = None


def quantize_bundle(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: QuantizeOptions | None = None,
    *,
    progress: Progress = SILENT,
    **keywords: Any,
) -> Bundle:
    """Quantize a bundle; the same as :func:`quantize` for those who only want the bundle, opened."""
    return quantize(bundle, output, options, progress=progress, **keywords).bundle


def quantize(
    bundle: Bundle | str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: QuantizeOptions | None = None,
    *,
    progress: Progress = SILENT,
    **keywords: Any,
) -> Quantized:
    """Quantize a bundle, and say what was measured.

    Called with options, ``quantize(bundle, output, QuantizeOptions("int8", "photos"))``, or with their attributes as
    keywords, ``quantize(bundle, output, recipe="int8", calibration="photos")``.

    Args:
        bundle: a float bundle.
        output: the new bundle's folder; checked before the work begins.
        options: how it is quantized.
        progress: where progress is shown.
        keywords: the attributes of :class:`livemoments.quantize.options.QuantizeOptions`, in place of ``options``.

    Raises:
        UsageError: a recipe that does not exist or would do nothing, a source that is quantized already, a calibration
            that is missing or does not fit, a budget that cannot be measured.
        BundleError, FileError, ImageError: source, recipe or calibration set cannot be read.
        EngineError: an output is not finite, dead or saturated.
        ParityError: an output is too far from the source's.
        CheckFailedError: the result is slower than the source, or no mix keeps the budget.
        OutputError: the destination exists or cannot be written.
        ResourceError: memory or disk ran out.
        MissingExtraError: the extra ``export``, for packages ``coreml``, or for ``via`` and ``autotune`` ``modelopt``,
            is not installed.
    """
    _need_extra()
    from livemoments.quantize.acceptance import check_mix, check_source, refuse_slower
    from livemoments.quantize.autotune import autotuned_mix, check_autotune
    from livemoments.quantize.calibrate.modelopt_observers import PACKAGE, modelopt_observer
    from livemoments.quantize.recipes import load_recipe, recipe_mix
    from livemoments.quantize.search.find_mix import check_budget
    from livemoments.quantize.search.trial_photos import read_trial_photos
    from livemoments.quantize.write_stage import copy_stage, find_writer

    if options is None:
        options = QuantizeOptions(**keywords)
    elif keywords:
        raise TypeError("give the options as QuantizeOptions or as keywords, not both")
    recipe, budget = load_recipe(options.recipe), options.limit
    if recipe.for_packages and importlib.util.find_spec("coremltools") is None:
        raise MissingExtraError("compressing Core ML packages", "coreml", missing="coremltools")
    observer = modelopt_observer(recipe) if options.via == "modelopt" else None
    source = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    check_source(source, recipe)
    if budget is not None and recipe.for_packages:
        raise UsageError(
            "a budget is spent layer by layer on graphs, not on Core ML packages", fix="leave --budget out"
        )
    if options.autotune:
        check_autotune(source, recipe)
    mix = recipe_mix(recipe, _find_linears(source)) if options.mix is None else options.mix
    check_mix(mix, recipe, source)
    with _resource_errors(Path(output)), write_bundle(output, overwrite=options.overwrite) as writer:
        photos: list[LivePhoto[Photo]] = []
        if budget is not None:
            photos = read_trial_photos(
                options.calibration,  # type: ignore[arg-type]  # a folder: the options have checked it
                options.photos,
                with_truth=budget.of_quality,
                seed=options.seed,
                progress=progress,
            )
        observed = _calibration(source, recipe, mix, options, observer, progress)
        if options.autotune:
            mix = autotuned_mix(source, recipe, mix, progress=progress)
            check_mix(mix, recipe, source)
        search = None
        if budget is not None:
            search = _search(source, recipe, observed, photos, options, progress)
            mix = search.mix
        entries = {}
        touched, write_stage = _touched(source, recipe, mix), find_writer(source)
        with progress.task("quantizing", total=len(source.manifest.stages)) as task:
            for name, entry in source.manifest.stages.items():
                if Stage(name) in touched:
                    stats = None if observed is None else observed.stats
                    entries[name] = write_stage(source, writer.folder, Stage(name), recipe, mix, stats)
                else:
                    copy_stage(source, writer.folder, entry)
                    entries[name] = entry
                task.advance(note=name)
        manifest = msgspec.structs.replace(
            source.manifest,
            producer=f"livemoments-deploy {__version__}",
            precision=recipe.precision,
            stages=entries,
            toolchain=source.manifest.toolchain
            | _toolchain(*([PACKAGE] if options.autotune or observer is not None else [])),
            recipe=recipe.name,
            smoothed=recipe.smoothquant_alpha is not None,
            calibration_sha256=None if observed is None else observed.sha256,
            calibration_seed=None if observed is None else observed.seed,
            files={},
        )
        speeds: tuple[StageSpeed, ...] = ()
        if options.verify:
            timed = options.check_speed and "cpu" in recipe.devices
            manifest, speeds = _verify(source, writer.folder, manifest, recipe, touched, timed, progress)
            refuse_slower(speeds, recipe, allow_slower=options.allow_slower)
        manifest = msgspec.structs.replace(manifest, files=writer.hash_files())
        if budget is not None:
            check_budget(source, Bundle(writer.folder, manifest), photos, budget, seed=options.seed)
        writer.commit(manifest)
    layers = Counter(action.value for action in mix.values())
    return Quantized(Bundle.open(output, verify_hashes=False), dict(layers), speeds, search)


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
    from livemoments.quantize.recipes import PACKAGES

    if bundle.manifest.target == PACKAGES:
        from livemoments.quantize.packages.linears import bundle_linears

        return bundle_linears(bundle)
    import onnx_ir as ir

    from livemoments.graphs.linears import find_linears

    return [
        linear
        for name, entry in bundle.manifest.stages.items()
        for linear in find_linears(ir.load(bundle.path / entry.graphs[0].path), name)
    ]


def _calibration(
    bundle: Bundle,
    recipe: Recipe,
    mix: Mix,
    options: QuantizeOptions,
    observer: Observer | None,
    progress: Progress,
) -> CalibrationResult | None:
    from livemoments.quantize.calibrate.result import CalibrationResult
    from livemoments.quantize.calibrate.run import calibrate_for

    calibration = options.calibration
    if calibration is None:
        if recipe.needs_calibration or any(action.needs_calibration for action in mix.values()):
            raise UsageError(
                f"recipe '{recipe.name}' needs a calibration set",
                fix="pass --calibration DIR, a folder with lr/ (frames) and ref/ (photos) of the same names",
            )
        return None
    if options.budget is not None and not recipe.needs_calibration:
        return None  # the set is there for the loss alone
    if isinstance(calibration, CalibrationResult):
        result = calibration
    elif Path(calibration).is_file():
        result = CalibrationResult.load(calibration)
    else:
        result = calibrate_for(
            recipe, bundle, calibration, seed=options.seed, observer=observer, work=options.work, progress=progress
        )
    if observer is not None and result.observer != observer.name:
        raise UsageError(
            f"the calibration's ranges were chosen by '{result.observer}', not by '{observer.name}'",
            fix="pass the photos: --calibration DIR",
        )
    result.check_fits(bundle, recipe.rotation)
    return result


def _search(
    bundle: Bundle,
    recipe: Recipe,
    observed: CalibrationResult | None,
    photos: list[LivePhoto[Photo]],
    options: QuantizeOptions,
    progress: Progress,
) -> SearchResult:
    from livemoments.quantize.search.find_mix import find_mix
    from livemoments.quantize.search.photo_loss import open_photo_loss
    from livemoments.quantize.search.sensitivity import SensitivityOptions

    assert options.limit is not None
    work = options.work_folder
    how = SensitivityOptions(recipe, observed, work=work)
    with open_photo_loss(bundle, photos, seed=options.seed, parent=work) as loss:
        return find_mix(loss, how, options.limit, goal=options.goal, progress=progress)


def _touched(bundle: Bundle, recipe: Recipe, mix: Mix) -> list[Stage]:
    """The stages that change, in the order in which a tile passes them."""
    from livemoments.quantize.actions import Action

    names = {linear.stage for linear, action in mix.items() if action is not Action.KEEP}
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
    from livemoments.graphs.float_keys_values import FloatKeysValues
    from livemoments.quantize.acceptance import compare_stage, time_stage
    from livemoments.quantize.sample_inputs import SampleInputs, backend_for

    quantized, backend = Bundle(folder, manifest), FloatKeysValues(backend_for(source))
    samples = SampleInputs(source)
    sizes = source.tile_sizes
    smallest = min(sizes, key=lambda size: size.height * size.width)
    entries, speeds = dict(manifest.stages), []
    with progress.task("comparing with the source", total=len(touched) * len(sizes)) as task:
        for stage in touched:
            parity: list[StageParity] = []
            for size in sizes:
                with backend.open(source, stage, size) as before, backend.open(quantized, stage, size) as after:
                    parity.append(compare_stage(before, after, samples, stage, size, recipe.precision))
                    if timed and size == smallest and stage in (Stage.REFERENCE, Stage.RESTORATION):
                        _, inputs = next(samples.cases(stage, size))
                        speeds.append(time_stage(before, after, inputs, stage, size))
                task.advance(note=f"{stage} {size}")
            entries[str(stage)] = msgspec.structs.replace(entries[str(stage)], parity=tuple(parity))
    return msgspec.structs.replace(manifest, stages=entries), tuple(speeds)


def _toolchain(*more: str) -> dict[str, str]:
    versions = {}
    for name in (*_TOOLS, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
