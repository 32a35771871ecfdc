"""A bundle over a data set: image after image, kept as they finish, in memory that does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.harness.image_files import ImageFiles, check_recording, files_of
from livemoments.validate.harness.image_worker import FinishedImage, ImageWorker, RunSpec
from livemoments.validate.harness.key import bundle_digest, run_key
from livemoments.validate.harness.metrics import Measures, StandardMeasures
from livemoments.validate.harness.run_store import RunStore, only_run_in
from livemoments.validate.report_data import ImageResult

if TYPE_CHECKING:
    from livemoments.validate.datasets.index import Dataset
    from livemoments.validate.recording.store import Recording

EngineKind = Literal["local", "ray"]

Finished = Iterator[tuple[ImageFiles, FinishedImage]]


def run_images(
    bundle: Bundle | str | os.PathLike[str],
    dataset: Dataset,
    *,
    work: str | os.PathLike[str],
    settings: RestoreOptions | None = None,
    measures: Callable[[], Measures] | None = None,
    recording: Recording | None = None,
    pictures: bool = True,
    engine: EngineKind = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    backend: Backend | None = None,
    key: Mapping[str, Any] | None = None,
    fresh: bool = False,
    progress: Progress = SILENT,
    on_result: Callable[[ImageResult], None] | None = None,
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
        measures: makes what measures an image, once per worker; PSNR, SSIM and MS-SSIM by default
            (:class:`StandardMeasures`). Something else must be picklable for ``ray``, and give its own ``key``.
        recording: of the reference; its photos are compared with ours, and PCR's corners with its.
        pictures: whether to make small pictures for the report.
        engine: ``local``: one image after another in this process. ``ray``: on the workers of a Ray cluster.
        workers: how many for ``ray``; by default one per GPU, or one per machine.
        ray_address: of a running cluster; by default one is started on this machine and ended afterwards.
        backend: replaces the settings' back-end, for ``local``.
        key: what decides the results of other measures.
        fresh: begin anew, whatever the folder holds.
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
    if engine not in ("local", "ray"):
        raise UsageError(f"'{engine}' is no engine for a run", fix="use local or ray")
    if engine == "local" and workers not in (None, 1):
        raise UsageError("the local engine has one worker", fix="leave --workers out, or use --engine ray")
    if engine == "ray" and backend is not None:
        raise UsageError("a back-end cannot be sent to other machines", fix="name a provider in the settings")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    settings = (settings or RestoreOptions()).for_bundle(opened)
    if recording is not None:
        check_recording(recording, settings, opened)
    measures = measures or StandardMeasures()
    of_measures = dict(key or {}) | (measures.key() if isinstance(measures, StandardMeasures) else {})
    digest = bundle_digest(opened)
    folder = Path(work)
    spec = RunSpec(opened.path.absolute(), digest, settings, measures, pictures)
    recorded = None if recording is None else recording.meta.digest
    images = [files_of(item, recording) for item in dataset.items]
    with only_run_in(folder):
        store = RunStore(
            folder, run_key(digest, settings, recorded, of_measures), images, pictures=pictures, fresh=fresh
        )
        left = [image for image in images if image.name not in store.done]
        for result in store.done.values():
            _tell(on_result, result)
        with (
            progress.task("Restoring the images", len(images)) as task,
            _engine(engine, spec, left, opened, backend, workers, ray_address, progress) as finished,
        ):
            task.advance(len(images) - len(left), note=f"{len(store.done)} done before" if store.done else None)
            for image, one in finished:
                _tell(on_result, store.add(image, one))
                task.advance(1, note=image.name)
        store.finish()
    rejected = [ImageResult(name=name, status="failed", error=why) for name, why in dataset.rejected]
    for result in rejected:
        _tell(on_result, result)
    return tuple(sorted([*store.done.values(), *rejected], key=lambda result: result.name))


def _engine(
    engine: EngineKind,
    spec: RunSpec,
    images: Sequence[ImageFiles],
    bundle: Bundle,
    backend: Backend | None,
    workers: int | None,
    ray_address: str | None,
    progress: Progress,
) -> AbstractContextManager[Finished]:
    if engine == "local":
        return _local(spec, images, bundle, backend, progress)
    from livemoments.validate.harness.ray_engine import run_on_ray

    return closing(run_on_ray(spec, images, workers=workers, address=ray_address, progress=progress))


@contextmanager
def _local(
    spec: RunSpec, images: Sequence[ImageFiles], bundle: Bundle, backend: Backend | None, progress: Progress
) -> Iterator[Finished]:
    """The images, one after another, in this process; nothing is opened if none is left."""
    if not images:
        yield iter(())
        return
    with ImageWorker(spec, bundle, backend) as worker:
        yield ((image, worker.run(image, progress)) for image in images)


def _tell(on_result: Callable[[ImageResult], None] | None, result: ImageResult) -> None:
    if on_result is not None:
        on_result(result)
