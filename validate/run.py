"""Validating a bundle: parity with the reference, self-checks, quality over a data set, cost; one report."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from livemoments.bundle import Bundle
from livemoments.errors import OutputError, UsageError
from livemoments.limits import load_limits
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.inputs import ImageSource
from livemoments.store.files import check_file
from livemoments.validate.cost.machine import machine_record
from livemoments.validate.cost.total import cost_checks, measure_cost
from livemoments.validate.datasets.descriptors import paper_rows
from livemoments.validate.datasets.index import open_dataset
from livemoments.validate.device_checks import device_checks
from livemoments.validate.harness.run import run_images
from livemoments.validate.harness.run_key import bundle_digest
from livemoments.validate.harness.run_store import has_results
from livemoments.validate.harness.summary import aggregate_metrics, image_checks
from livemoments.validate.ladder.bisect import bisect
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.integer_products import check_integer_products
from livemoments.validate.ladder.recorded_conditions import choose_image
from livemoments.validate.ladder.selfcheck import self_checks
from livemoments.validate.made_up_photo import made_up_live_photo, smallest_tile
from livemoments.validate.options import DataOptions, ValidateOptions
from livemoments.validate.policy_cost import policy_check
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.schema import LR, REF, REF_LR
from livemoments.validate.recording.store import Recording
from livemoments.validate.report.baseline import compare_with_baseline
from livemoments.validate.report.report_json import decode_report, finite
from livemoments.validate.report.terminal_text import checks_line, cost_line, parity_line, quality_line
from livemoments.validate.report.write import FILES, write_reports
from livemoments.validate.report_data import (
    Bisection,
    BundleInfo,
    Check,
    Cost,
    DatasetInfo,
    ImageResult,
    Level,
    Metric,
    Rung,
    ValidationReport,
)
from livemoments.version import __version__

CACHE = "index"
"""Folder beside the report in which the data set's checked files are remembered."""


def validate_bundle(
    bundle: Bundle | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    recording: Recording | str | os.PathLike[str] | None = None,
    live_photo: LivePhoto[Path] | None = None,
    data: DataOptions | str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    options: ValidateOptions | None = None,
    cost: Cost | None = None,
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
        live_photo: for parity with a checkpoint, and for the cost of a whole photo; made up where missing.
        data: a data set's folder, or that with options.
        output: folder for the report's files, the pictures and what is needed to go on after an interruption.
        options: what is checked, and how images are restored.
        cost: measured already (:func:`livemoments.validate.cost.total.cost_of_run`), instead of measuring it.
        backend: replaces the options' back-end, except for ``ray`` and the fresh process of the cost.
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
    options = options or ValidateOptions()
    if checkpoint is not None and recording is not None:
        raise UsageError("a checkpoint and a recording are two references", fix="name one of them")
    has_checkpoint = checkpoint is not None
    options.check(has_reference=has_checkpoint or recording is not None, has_checkpoint=has_checkpoint)
    if output is not None:
        if os.path.lexists(output) and not Path(output).is_dir():
            raise OutputError(output, "is a file", fix="name a folder for the report, or a .json file")
        check_file(Path(output) / FILES["json"])  # nothing is made yet, so that an error leaves nothing
    earlier = None if options.baseline is None else decode_report(options.baseline)  # a bad file is known before work
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    options = replace(options, restore=options.restore.for_bundle(opened))
    recorded = recording if isinstance(recording, Recording) or recording is None else open_recording(recording)
    images = data if isinstance(data, DataOptions) or data is None else DataOptions(Path(data))
    options.check_for(opened, has_data=images is not None)
    reference = None if checkpoint is None else f"checkpoint {Path(checkpoint).name}"
    if recorded is not None:
        reference = f"recording {recorded.path.name} of {recorded.meta.source.name}"
    origin = None if checkpoint is None else Path(checkpoint)
    validation = _Validation(opened, options, recorded, live_photo, backend, progress)
    ladder, bisection = validation.compare_with_reference(origin)
    checks = [*validation.check_itself(), *validation.check_device()]
    checks += [*validation.check_policy(), *validation.check_prompt(origin)]
    with _report_folder(output) as folder:
        results = _DataResults() if images is None else validation.restore_images(images, folder)
        cost = cost or validation.measure_cost()
        if cost is not None:
            progress.say(f"cost: {cost_line(cost)}")
        report = ValidationReport(
            livemoments=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            bundle=validation.describe_bundle(),
            reference=reference,
            dataset=results.info,
            settings={"command": options.command, **options.restore.to_json()},
            machine=machine_record(),
            checks=(*checks, *results.checks, *(() if cost is None else cost_checks(cost))),
            ladder=ladder,
            bisection=bisection,
            metrics=results.metrics,
            images=results.images,
            cost=cost,
            paper=() if images is None or images.name is None else paper_rows(images.name),
        )
        if earlier is not None:
            report = msgspec.structs.replace(report, baseline=compare_with_baseline(report, earlier))
        report = finite(report)
        if output is not None:
            write_reports(report, folder, formats=options.formats)
    return report


@dataclass(frozen=True)
class _DataResults:
    """What the data set gave."""

    info: DatasetInfo | None = None
    images: tuple[ImageResult, ...] = ()
    metrics: tuple[Metric, ...] = ()
    checks: tuple[Check, ...] = ()


def _whole_stages(bundle: Bundle, levels: Collection[Level], find_fault: bool, progress: Progress) -> tuple[Level, ...]:
    """The rungs that need no look into a stage: only ONNX graphs are cut.

    Raises:
        UsageError: the bundle is to be bisected.
    """
    if find_fault:
        raise UsageError(f"{bundle.path} holds no ONNX graphs, which alone are bisected", fix="leave --bisect out")
    if "block" in levels:
        progress.say(f"the rung 'block' is left out: stages of --target {bundle.manifest.target} are run as a whole")
    return tuple(level for level in levels if level != "block")


@dataclass
class _Validation:
    """The parts of a validation, each of which says its outcome."""

    bundle: Bundle
    options: ValidateOptions
    recording: Recording | None
    live_photo: LivePhoto[Path] | None
    own_backend: Backend | None
    progress: Progress

    def __post_init__(self) -> None:
        self.settings = self.options.restore
        self.limits = load_limits(self.bundle.manifest.precision, self.options.limits)
        self.backend = self.own_backend or self.settings.open_backend(self.bundle)

    def compare_with_reference(self, checkpoint: Path | None) -> tuple[tuple[Rung, ...], Bisection | None]:
        """The parity ladder, and where the engine leaves the reference if that was asked for."""
        levels, find_fault = self.options.levels, self.options.find_fault
        if not self.bundle.has_onnx_graphs:
            levels = _whole_stages(self.bundle, levels, find_fault, self.progress)
        bisection: Bisection | None = None
        if checkpoint is not None:
            from livemoments.validate.against_checkpoint import compare_with_checkpoint

            rungs, bisection = compare_with_checkpoint(
                self.bundle,
                checkpoint,
                self.live_photo,
                self.settings,
                levels=levels,
                find_fault=find_fault,
                limits=self.limits,
                backend=self.backend,
                progress=self.progress,
            )
        elif self.recording is not None:
            given, backend, limits, progress = self.recording, self.backend, self.limits, self.progress
            rungs = compare(self.bundle, given, levels=levels, backend=backend, limits=limits, progress=progress)
            if find_fault:
                bisection = bisect(self.bundle, given, backend=backend, limits=limits, progress=progress)
        else:
            rungs = ()
        if rungs:
            self.progress.say(f"parity: {parity_line(rungs)}")
        return rungs, bisection

    def check_itself(self) -> tuple[Check, ...]:
        """Checks that need no reference, if they were asked for."""
        if not self.options.check_itself:
            return ()
        seed, limits = self.settings.seed, self.limits
        own = self_checks(self.bundle, backend=self.backend, seed=seed, limits=limits, progress=self.progress)
        checks = (check_integer_products(), *own)
        self.progress.say(f"self-checks: {checks_line(checks)}")
        return checks

    def check_device(self) -> tuple[Check, ...]:
        """A Mac's answers against the interpreter's, if that was asked for."""
        if not self.options.compare_interpreter:
            return ()
        limits, provider = self.options.limits, self.settings.provider
        checks = device_checks(self.bundle, provider, limits=limits, progress=self.progress)
        self.progress.say(f"device: {checks_line(checks)}")
        return checks

    def check_policy(self) -> tuple[Check, ...]:
        """What the reference policy costs, if it is not exact."""
        check = policy_check(self.bundle, self.settings, self._any_live_photo(), self.backend, self.progress)
        return () if check is None else (check,)

    def check_prompt(self, checkpoint: Path | None) -> tuple[Check, ...]:
        """What another prompt would change of the checkpoint's photo, if one was named."""
        if self.options.prompt is None or checkpoint is None:
            return ()
        from livemoments.validate.prompt_cost import prompt_check

        live, prompt = self._any_live_photo(), self.options.prompt
        check = prompt_check(self.bundle, checkpoint, prompt, self.settings, live, self.progress)
        price = "the same photo" if check.value is None else f"{check.value:.1f} dB from the other one"
        self.progress.say(f"prompt: {price}")
        return (check,)

    def restore_images(self, data: DataOptions, folder: Path) -> _DataResults:
        """The data set, image by image."""
        run, chosen, progress = data.run, data.metrics, self.progress
        work = folder / CACHE
        dataset = open_dataset(data.folder, descriptor=data.name, limit=data.limit, work=work, progress=progress)
        recording = self.recording
        is_recorded = recording is not None and any(item.name in recording.images for item in dataset.items)
        images = run_images(
            self.bundle,
            dataset,
            work=folder,
            settings=self.settings,
            options=run,
            recording=recording if is_recorded else None,
            backend=self.own_backend if run.engine == "local" else None,
            progress=progress,
        )
        info = DatasetInfo(
            name=dataset.name,
            descriptor=dataset.descriptor,
            images=len(images),
            has_truth=dataset.has_truth,
            sha256=dataset.sha256,
        )
        metrics = aggregate_metrics(images, folder, chosen)
        progress.say(f"quality: {quality_line(metrics)}")
        return _DataResults(info, images, metrics, image_checks(images, allowed_failures=data.allowed_failures))

    def measure_cost(self) -> Cost | None:
        """Latency and memory, if they were asked for."""
        runs = self.options.cost_runs
        if not runs:
            return None
        photo, backend = self.live_photo, self.own_backend
        return measure_cost(self.bundle, self.settings, photo=photo, backend=backend, runs=runs, progress=self.progress)

    def describe_bundle(self) -> BundleInfo:
        """What was validated."""
        manifest = self.bundle.manifest
        files = {
            name: sum(manifest.files[file].bytes for file in {f for g in entry.graphs for f in (g.path, *g.weights)})
            for name, entry in manifest.stages.items()
        }
        return BundleInfo(
            name=self.bundle.path.name,
            digest=bundle_digest(self.bundle),
            precision=manifest.precision,
            recipe=manifest.recipe,
            target=manifest.target,
            policy=str(self.settings.policy(self.bundle)),
            provider=f"{self.backend.name}:{self.backend.provider}",
            bytes=sum(entry.bytes for entry in manifest.files.values()),
            files=files,
        )

    def _any_live_photo(self) -> LivePhoto[ImageSource]:
        """The one that was named, else a recorded one, else a made-up one."""
        if self.live_photo is not None:
            return self.live_photo
        if self.recording is not None:
            name = choose_image(self.recording, None)
            frame, photo, photo_frame = (self.recording.image_path(name, role) for role in (LR, REF, REF_LR))
            if frame is not None and photo is not None:
                return LivePhoto(frame, photo, photo_frame)
        return made_up_live_photo(smallest_tile(self.bundle), self.settings.seed)


@contextlib.contextmanager
def _report_folder(output: str | os.PathLike[str] | None) -> Iterator[Path]:
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
