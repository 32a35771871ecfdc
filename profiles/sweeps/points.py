"""The work of a sweep: the exact results, then one point after the other, each kept as it finishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.errors import ImageError, LiveMomentsError, MissingExtraError, OutputError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.profiles.sweeps.crop import find_crop
from livemoments.profiles.sweeps.folder import SweepFolder, digest_of
from livemoments.profiles.sweeps.grid import Candidate
from livemoments.profiles.sweeps.measure import ImageRun, measure_photo, photos_of, quality_of
from livemoments.profiles.sweeps.report_data import POINT_SCHEMA, PointResult
from livemoments.progress import Progress, Task
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.inputs import load_inputs
from livemoments.validate.cost.machine import machine_record
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.harness.run_key import bundle_digest
from livemoments.validate.report.baseline_cost import hardware_of
from livemoments.validate.report.numbers import format_count
from livemoments.validate.report_data import ImageResult


@dataclass(frozen=True)
class MeasuredPoint:
    """A candidate, the name of its result, the key of its exact run, and the result."""

    candidate: Candidate
    id: str
    exact: str
    result: PointResult


class PointsAtWork:
    """Measures candidates over one data set.

    Args:
        folder: where results are kept.
        dataset: the images.
        exact: the fp32 bundle.
        run: where images are worked on.
        metrics: of every image.
        runs: fresh processes a point.
        photo: name of the image that these restore; ``None``: the first.
        progress: where to report.

    Attributes:
        photo: that image.
        inputs: the same, read.
        crop: the detail of it that is kept of every point.
        machine: this machine's description.
        exacts: by key, the runs that points are compared with, and their results.

    Raises:
        UsageError: there is no such image.
        ImageError: it cannot be read.
    """

    def __init__(
        self,
        folder: SweepFolder,
        dataset: Dataset,
        exact: Bundle,
        run: RunOptions,
        metrics: StandardMetrics,
        *,
        runs: int,
        photo: str | None,
        progress: Progress,
    ) -> None:
        self._folder, self._dataset, self._exact = folder, dataset, exact
        self._run, self._metrics, self._metrics_key = run, metrics, metrics.key()
        self._runs, self._progress = runs, progress
        self._images = len(dataset.items) + len(dataset.rejected)
        self.photo = _find_photo(dataset, photo)
        self.inputs = load_inputs(self.photo.frame, self.photo.photo, self.photo.photo_frame)
        self.crop = find_crop(self.inputs.frame, self.inputs.size)
        self.machine = machine_record()
        self.exacts: dict[str, tuple[ImageRun, tuple[ImageResult, ...]]] = {}

    def measure(self, candidates: Sequence[Candidate]) -> list[MeasuredPoint]:
        """Every candidate, in order; what is kept already is not measured again.

        Raises:
            EngineError, ResourceError, BundleError: the exact result cannot be made.
            OutputError: the folder cannot be written.
            ResourceError: the disk is full.
            MissingExtraError: an extra is not installed.
        """
        runs = [self._image_runs(candidate) for candidate in candidates]
        ids = [self._id(candidate, run) for candidate, (run, _) in zip(candidates, runs, strict=True)]
        known = {point: result for point in ids if (result := self._folder.result(point)) is not None}
        exact_runs = {exact.key: exact for _, exact in runs}
        if known:
            self._progress.say(f"{len(known)} of {format_count(len(ids), 'point')} measured before")
        found = []
        with self._progress.task("Sweeping", len(exact_runs) + len(ids) - len(known)) as task:
            for key, exact in exact_runs.items():
                self.exacts[key] = (exact, self._restore(exact, {}, task, self._images))
            for candidate, point, (run, exact) in zip(candidates, ids, runs, strict=True):
                result = known.get(point) or self._measured(candidate, point, run, exact, task)
                found.append(MeasuredPoint(candidate, point, exact.key, result))
        return found

    def exact_crop(self, key: str) -> bytes | None:
        """The detail as an exact run restored it, a JPEG file; ``None`` if it could not restore that photo."""
        run, results = self.exacts[key]
        photo = photos_of(results, self._folder.images(run.key)).get(self.photo.name)
        return None if photo is None else self.crop.of(read_photo(photo))

    def _measured(self, candidate: Candidate, point: str, run: ImageRun, exact: ImageRun, task: Task) -> PointResult:
        parts = self._images + self._runs
        _, exact_results = self.exacts[exact.key]
        try:
            work = self._folder.images(run.key)
            if run.pictures == exact.pictures:
                work, results = self._folder.images(exact.key), exact_results  # it is the exact result
            else:
                results = self._restore(run, photos_of(exact_results, self._folder.images(exact.key)), task, parts)
            quality = quality_of(results, exact_results, work, self._metrics)
            cost, crop = measure_photo(
                candidate.bundle,
                candidate.settings,
                self.photo,
                self.crop,
                runs=self._runs,
                progress=self._progress,
                on_run=lambda: task.advance(1 / parts, note=str(candidate)),
            )
        except (OutputError, MissingExtraError):
            raise
        except (LiveMomentsError, MemoryError) as error:
            # kept on the disk: if it is the disk that is full, that ends the sweep
            why = error.message if isinstance(error, LiveMomentsError) else f"out of memory ({error})"
            self._progress.say(f"{candidate}: {why}")
            return self._folder.keep(point, PointResult(status="failed", error=why))
        return self._folder.keep(point, PointResult(status="ok", quality=quality, cost=cost), crop)

    def _restore(
        self, run: ImageRun, exact_photos: Mapping[str, Path], task: Task, parts: int
    ) -> tuple[ImageResult, ...]:
        work = self._folder.images(run.key)
        return run.results(work, exact_photos, self._progress, lambda result: task.advance(1 / parts, note=result.name))

    def _image_runs(self, candidate: Candidate) -> tuple[ImageRun, ImageRun]:
        """The candidate's run over the data set, and the exact one that it is compared with."""
        common = (self._dataset, self._run, self._metrics, self._metrics_key)
        exact = ImageRun(self._exact, candidate.exact, *common)
        return ImageRun(candidate.bundle, candidate.settings, *common, compared=exact.key), exact

    def _id(self, candidate: Candidate, run: ImageRun) -> str:
        """The name of everything that a candidate's numbers depend on."""
        return digest_of(
            {
                "schema": POINT_SCHEMA,
                "images": run.key,
                "bundle": bundle_digest(candidate.bundle),
                "settings": candidate.settings.to_json(),
                "dataset": self._dataset.sha256,
                "photo": self.photo.name,
                "runs": self._runs,
                "machine": hardware_of(self.machine),
            }
        )


def _find_photo(dataset: Dataset, name: str | None) -> LivePhoto[Path]:
    if name is None:
        return dataset.items[0]
    for item in dataset.items:
        if item.name == name:
            return item
    if name in dict(dataset.rejected):
        raise ImageError(dataset.root, f"'{name}' cannot be used: {dict(dataset.rejected)[name]}")
    raise UsageError(f"the data set has no photo '{name}'", fix=f"use e.g. {dataset.items[0].name}")
