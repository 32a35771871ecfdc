"""A bundle over a data set: image after image, kept as they finish, in memory that does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livemoments.bundle import Bundle
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.harness.image_inputs import ImageInputs, check_recording, inputs_of
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.image_worker import FinishedImage, ImageWorker, RunSpec
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.harness.run_key import bundle_digest, run_key
from livemoments.validate.harness.run_store import RunStore, only_run_in
from livemoments.validate.report_data import ImageResult

if TYPE_CHECKING:
    from livemoments.validate.datasets.index import Dataset
    from livemoments.validate.recording.store import Recording


def run_images(
    bundle: Bundle | str | os.PathLike[str],
    dataset: Dataset,
    *,
    work: str | os.PathLike[str],
    settings: RestoreOptions | None = None,
    options: RunOptions | None = None,
    recording: Recording | None = None,
    backend: Backend | None = None,
    key: Mapping[str, Any] | None = None,
    compare_with: Mapping[str, Path] | None = None,
    progress: Progress = SILENT,
    on_result: Callable[[ImageResult], object] = lambda _: None,
) -> tuple[ImageResult, ...]:
    """Restore and measure every image of a data set.

    Each result is on the disk when it is finished (``work/results.jsonl``, pictures in ``work/images/NAME/``). Killed
    at any moment and called again, it goes on behind the last one and gives what it would have given. Results that
    were made under other conditions (another bundle, settings, metrics, recording, package) are not mixed with these:
    a finished run is replaced, an unfinished one is refused. Images whose files changed are done again.

    Args:
        bundle: an opened bundle, or its folder (opened with every hash checked).
        dataset: the images (:func:`livemoments.validate.datasets.index.open_dataset`).
        work: folder for the journal and the pictures.
        settings: how images are restored.
        options: what is measured, and where.
        recording: of the reference; its photos are compared with ours, and PCR's corners with its.
        backend: replaces the settings' back-end, for ``local``.
        key: what else decides the results: of other metrics than the package's own, of ``compare_with``.
        compare_with: instead of a recording: photos by the images' names, with which ours are compared.
        progress: where to report.
        on_result: called with each result as it is finished, also with those of an earlier run.

    Returns:
        A result per image in the order of their names; those that the index rejected, or that could not be restored,
        with ``status="failed"`` and the reason.

    Raises:
        UsageError: a setting cannot be used; another run is in the folder.
        BundleError: the bundle cannot be trusted.
        EngineError: the engines cannot be opened; no worker starts.
        MissingExtraError: ``ray`` is not installed.
        OutputError: the folder cannot be written.
        ResourceError: memory or disk ran out; what was finished is kept.
    """
    options = options or RunOptions()
    options.check(has_backend=backend is not None)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    settings = (settings or RestoreOptions()).for_bundle(opened)
    if recording is not None:
        check_recording(recording, settings, opened)
    metrics = options.metrics
    metrics_key = dict(key or {}) | (metrics.key() if isinstance(metrics, StandardMetrics) else {})
    digest = bundle_digest(opened)
    folder = Path(work)
    spec = RunSpec(opened.path.absolute(), digest, settings, metrics, options.pictures, options.results)
    recorded = None if recording is None else recording.meta.digest
    images = [inputs_of(item, recording, compare_with or {}) for item in dataset.items]
    with only_run_in(folder):
        key = run_key(digest, settings, recorded, metrics_key)
        keeps = {"pictures": options.pictures, "results": options.results}
        store = RunStore(folder, key, images, **keeps, fresh=options.fresh)
        left = [image for image in images if image.name not in store.done]
        for result in store.done.values():
            on_result(result)
        if options.engine == "ray":
            from livemoments.validate.harness.ray_engine import run_on_ray

            finished = run_on_ray(spec, left, workers=options.workers, address=options.ray_address, progress=progress)
        else:
            finished = _run_here(spec, left, opened, backend, progress)
        with progress.task("Restoring the images", len(images)) as task, closing(finished):
            task.advance(len(images) - len(left), note=f"{len(store.done)} done before" if store.done else None)
            for image, one in finished:
                on_result(store.add(image, one))
                task.advance(1, note=image.name)
        store.finish()
    rejected = [ImageResult(name=name, status="failed", error=why) for name, why in dataset.rejected]
    for result in rejected:
        on_result(result)
    return tuple(sorted([*store.done.values(), *rejected], key=lambda result: result.name))


def _run_here(
    spec: RunSpec, images: Sequence[ImageInputs], bundle: Bundle, backend: Backend | None, progress: Progress
) -> Generator[tuple[ImageInputs, FinishedImage]]:
    """The images, one after another, in this process; nothing is opened if none is left."""
    if images:
        with closing(ImageWorker(spec, bundle, backend)) as worker:
            for image in images:
                yield image, worker.run(image, progress)
