"""Validating a bundle: parity with the reference, self-checks, quality over a data set, cost; one report."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from livemoments.bundle import Bundle
from livemoments.errors import OutputError, UsageError
from livemoments.limits import load_limits
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.inputs import ImageSource
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.cost.machine import machine_record
from livemoments.validate.cost.total import cost_checks, measure_cost
from livemoments.validate.data_plan import DataPlan
from livemoments.validate.datasets.descriptors import paper_rows
from livemoments.validate.datasets.index import Dataset, open_dataset
from livemoments.validate.harness.key import bundle_digest
from livemoments.validate.harness.run import run_images
from livemoments.validate.harness.run_store import has_results
from livemoments.validate.harness.summary import aggregate_metrics, image_checks
from livemoments.validate.ladder.bisect import bisect
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.integer_products import check_integer_products
from livemoments.validate.ladder.recorded_conditions import choose_image
from livemoments.validate.ladder.rungs import LEVELS, Level
from livemoments.validate.ladder.selfcheck import self_checks
from livemoments.validate.policy_cost import made_up_live_photo, policy_check, smallest_tile
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.schema import LR, REF, REF_LR
from livemoments.validate.recording.store import Recording
from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report.schema import decode_report, finite
from livemoments.validate.report.text import checks_line, cost_line, parity_line, quality_line
from livemoments.validate.report.write import write_reports
from livemoments.validate.report_data import (
    Bisection,
    BundleInfo,
    Check,
    Cost,
    DatasetInfo,
    ImageResult,
    Metric,
    Rung,
    ValidationReport,
)
from livemoments.version import __version__

CACHE = "index"
"""Folder beside the report in which the data set's checked files are remembered."""


def validate(
    bundle: Bundle | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    recording: Recording | str | os.PathLike[str] | None = None,
    prompt: str | os.PathLike[str] | None = None,
    clip: LivePhoto[Path] | None = None,
    data: DataPlan | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    levels: Collection[Level] = LEVELS,
    find_fault: bool = False,
    check_itself: bool = True,
    cost_runs: int = 0,
    cost: Cost | None = None,
    settings: RestoreOptions | None = None,
    baseline: str | os.PathLike[str] | None = None,
    limits: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("html", "json", "csv", "md", "junit"),
    command: str = "",
    backend: Backend | None = None,
    progress: Progress = SILENT,
) -> ValidationReport:
    """Validate a bundle; what is measured depends on what is given.

    With a checkpoint (torch) or a recording (no torch) the parity ladder is climbed; with a data set every image is
    restored and its quality measured, image by image: a run that was killed goes on where it stopped.

    Args:
        bundle: an opened bundle, or its folder (opened with every hash checked).
        checkpoint: what it was exported from.
        recording: of the reference, made by ``livemoments record``; not with a checkpoint.
        prompt: another prompt's folder: what it would change of the checkpoint's photo is reported.
        clip: the Live Photo for parity with a checkpoint, and for the cost of a whole photo; made up where missing.
        data: a data set's folder, or a plan with options.
        output: folder for the report's files, the pictures and what is needed to go on after an interruption.
        levels: rungs of the parity ladder.
        find_fault: bisect: name the first block, module and ONNX node that leaves the reference.
        check_itself: checks that need no reference: batches, tile order, repetition.
        cost_runs: timed runs of each stage; 0 measures no cost.
        cost: measured already (:func:`livemoments.validate.cost.total.cost_of_run`), instead of measuring it.
        settings: how images are restored.
        baseline: an earlier ``report.json``; what is worse beyond noise fails.
        limits: a limits file instead of the shipped ``validate/limits.toml``.
        formats: of the files in ``output``.
        command: what was typed, for the report.
        backend: replaces the settings' back-end, except for ``ray`` and the fresh process of the cost.
        progress: where to report; each part's outcome is said as soon as it is known.

    Raises:
        UsageError: arguments that do not go together; another run is in ``output``.
        BundleError: the bundle cannot be trusted, or belongs to another checkpoint or recording.
        CheckpointError, ImageError, FileError: an input cannot be read.
        OutputError: the output cannot be written.
        EngineError: an engine cannot be loaded, or its outputs are not finite.
        MissingExtraError: an extra is not installed.
        ResourceError: memory or disk ran out; finished images are kept.
    """
    if checkpoint is not None and recording is not None:
        raise UsageError("a checkpoint and a recording are two references", fix="name one of them")
    if prompt is not None and checkpoint is None:
        raise UsageError("another prompt needs the networks in PyTorch", fix="name the checkpoint")
    if find_fault and checkpoint is None and recording is None:
        raise UsageError("to bisect, there must be a reference", fix="name a checkpoint or a recording")
    if output is not None:
        _check_writable(Path(output))
    earlier = None if baseline is None else decode_report(baseline)  # a bad file is known before the work
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    settings = (settings or RestoreOptions()).for_bundle(opened)
    held = load_limits(opened.manifest.precision, limits)
    engines = backend or settings.open_backend()
    recorded = recording if isinstance(recording, Recording) or recording is None else open_recording(recording)
    plan = data if isinstance(data, DataPlan) or data is None else DataPlan(Path(data))
    if plan is not None or cost_runs:
        _need_every_stage(opened, "restored" if plan is not None else "timed")
    checks: list[Check] = []
    rungs: tuple[Rung, ...] = ()
    bisection: Bisection | None = None
    if checkpoint is not None:
        from livemoments.validate.against_checkpoint import compare_with_checkpoint

        parity = compare_with_checkpoint(
            opened,
            Path(checkpoint),
            clip,
            settings,
            levels=levels,
            find_fault=find_fault,
            limits=held,
            backend=engines,
            progress=progress,
        )
        rungs, bisection = parity.rungs, parity.bisection
    elif recorded is not None:
        rungs = compare(opened, recorded, levels=levels, backend=engines, limits=held, progress=progress)
        if find_fault:
            bisection = bisect(opened, recorded, backend=engines, limits=held, progress=progress)
    if rungs:
        progress.say(f"parity: {parity_line(rungs)}")
    if check_itself:
        checks.append(check_integer_products())
        checks += self_checks(opened, backend=engines, seed=settings.seed, limits=held, progress=progress)
        progress.say(f"self-checks: {checks_line(checks)}")
    policy = policy_check(opened, settings, _clip(opened, clip, recorded, settings), engines, progress)
    checks += () if policy is None else (policy,)
    if prompt is not None and checkpoint is not None:
        from livemoments.validate.prompt_cost import prompt_check

        live = _clip(opened, clip, recorded, settings)
        checks.append(prompt_check(opened, Path(checkpoint), Path(prompt), settings, live, progress))
        distance = checks[-1].value
        progress.say(f"prompt: {'the same photo' if distance is None else f'{distance:.1f} dB from the other one'}")
    with _folder(output) as folder:
        found = _go_through(opened, plan, recorded, settings, folder, backend, progress)
        if found.images and plan is not None:
            checks += image_checks(found.images, allowed_failures=plan.allowed_failures)
            progress.say(f"quality: {quality_line(found.metrics)}")
        cost = cost or _cost(opened, settings, clip, cost_runs, backend, progress)
        if cost is not None:
            progress.say(f"cost: {cost_line(cost)}")
        checks += () if cost is None else cost_checks(cost)
        report = ValidationReport(
            livemoments=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            bundle=_describe(opened, str(settings.policy(opened)), f"{engines.name}:{engines.provider}"),
            reference=_name_reference(checkpoint, recorded),
            dataset=found.info,
            settings={"command": command, **settings.to_json()},
            machine=machine_record(),
            checks=tuple(checks),
            ladder=rungs,
            bisection=bisection,
            metrics=found.metrics,
            images=found.images,
            cost=cost,
            paper=() if plan is None or plan.name is None else paper_rows(plan.name),
        )
        if earlier is not None:
            report = msgspec.structs.replace(report, baseline=compare_with_baseline(report, earlier))
        report = finite(report)
        if output is not None:
            write_reports(report, folder, formats=formats)
    return report


@dataclass(frozen=True)
class _Found:
    """What the data set gave."""

    info: DatasetInfo | None = None
    images: tuple[ImageResult, ...] = ()
    metrics: tuple[Metric, ...] = ()


def _need_every_stage(bundle: Bundle, what: str) -> None:
    """Refuse a part of a bundle for what needs the whole.

    Raises:
        UsageError: a stage is missing.
    """
    if bundle.missing_stages:
        raise UsageError(
            f"{bundle.path} has no stage '{bundle.missing_stages[0]}', so no photo can be {what}",
            fix="export every stage, or leave --dataset out and say --no-cost",
        )


def _check_writable(folder: Path) -> None:
    """Before any work begins: could the report be written there? Nothing is made yet, so that an error leaves nothing.

    Raises:
        OutputError: it is a file, or it, or what would hold it, cannot be written.
    """
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise OutputError(place, "is a file", fix="name a folder for the report, or a .json file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(place, "cannot be written (permission denied)", fix="choose another -o")


@contextlib.contextmanager
def _folder(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    """The report's folder; one that was made here goes again with an error, unless finished images are in it."""
    if output is not None:
        folder, made = Path(output), not os.path.lexists(output)
        try:
            yield folder
        except BaseException:
            if made and not has_results(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        return
    with tempfile.TemporaryDirectory(prefix="livemoments-validate-") as name:
        yield Path(name)


def _go_through(
    bundle: Bundle,
    plan: DataPlan | None,
    recording: Recording | None,
    settings: RestoreOptions,
    folder: Path,
    backend: Backend | None,
    progress: Progress,
) -> _Found:
    if plan is None:
        return _Found()
    dataset = open_dataset(plan.folder, descriptor=plan.name, limit=plan.limit, work=folder / CACHE, progress=progress)
    images = run_images(
        bundle,
        dataset,
        work=folder,
        settings=settings,
        measures=plan.measures,
        recording=None if recording is None or not _covers(recording, dataset) else recording,
        pictures=plan.pictures,
        engine=plan.engine,
        workers=plan.workers,
        ray_address=plan.ray_address,
        backend=backend if plan.engine == "local" else None,
        fresh=plan.fresh,
        progress=progress,
    )
    info = DatasetInfo(
        name=dataset.name,
        descriptor=dataset.descriptor,
        images=len(images),
        has_truth=dataset.has_truth,
        sha256=dataset.sha256,
    )
    return _Found(info, images, aggregate_metrics(images, folder, plan.measures))


def _covers(recording: Recording, dataset: Dataset) -> bool:
    """Whether the recording holds photos of this data set."""
    return any(item.name in recording.images for item in dataset.items)


def _clip(
    bundle: Bundle, clip: LivePhoto[Path] | None, recording: Recording | None, settings: RestoreOptions
) -> LivePhoto[ImageSource]:
    """The one that was named, else a recorded one, else a made-up one."""
    if clip is not None:
        return clip
    if recording is not None:
        name = choose_image(recording, None)
        frame, photo, photo_frame = (recording.image_path(name, role) for role in (LR, REF, REF_LR))
        if frame is not None and photo is not None:
            return LivePhoto(frame, photo, photo_frame)
    return made_up_live_photo(smallest_tile(bundle), settings.seed)


def _cost(
    bundle: Bundle,
    settings: RestoreOptions,
    clip: LivePhoto[Path] | None,
    runs: int,
    backend: Backend | None,
    progress: Progress,
) -> Cost | None:
    if not runs:
        return None
    return measure_cost(bundle, settings, photo=clip, backend=backend, runs=runs, progress=progress)


def _describe(bundle: Bundle, policy: str, provider: str) -> BundleInfo:
    manifest = bundle.manifest
    files = {
        name: sum(manifest.files[file].bytes for file in {f for g in entry.graphs for f in (g.path, *g.weights)})
        for name, entry in manifest.stages.items()
    }
    return BundleInfo(
        name=bundle.path.name,
        digest=bundle_digest(bundle),
        precision=manifest.precision,
        recipe=manifest.recipe,
        target=manifest.target,
        policy=policy,
        provider=provider,
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        files=files,
    )


def _name_reference(checkpoint: str | os.PathLike[str] | None, recording: Recording | None) -> str | None:
    if checkpoint is not None:
        return f"checkpoint {Path(checkpoint).name}"
    return None if recording is None else f"recording {recording.path.name} of {recording.meta.source.name}"
