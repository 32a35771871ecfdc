"""One point: its pictures over the data set, and what one photo costs in processes of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from livemoments.bundle import Bundle
from livemoments.distances import mse_of, psnr_of
from livemoments.errors import EngineError
from livemoments.live_photo import LivePhoto
from livemoments.profiles.sweeps.crop import Crop
from livemoments.profiles.sweeps.folder import digest_of
from livemoments.profiles.sweeps.report_data import PointCost, Quality
from livemoments.progress import SILENT, Progress
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.cost.total import cost_of_run
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.harness.previews import RESULT
from livemoments.validate.harness.run import run_images
from livemoments.validate.harness.run_key import bundle_digest, run_key
from livemoments.validate.harness.summary import aggregate_metrics
from livemoments.validate.report_data import Cost, ImageResult, Memory


@dataclass(frozen=True)
class ImageRun:
    """A bundle over the data set with one set of options, in a folder by their key.

    Attributes:
        bundle: opened.
        settings: how images are restored.
        dataset: the images.
        run: what is measured, and where.
        metrics: of ``run``.
        metrics_key: what decides them.
        compared: the key of the exact run whose photos these are compared with; ``None``: this is one.
    """

    bundle: Bundle
    settings: RestoreOptions
    dataset: Dataset
    run: RunOptions
    metrics: StandardMetrics
    metrics_key: Mapping[str, Any]
    compared: str | None = None

    @property
    def key(self) -> str:
        """Equal for runs that give the same pictures and metrics."""
        return digest_of(run_key(bundle_digest(self.bundle), self.settings, None, {**self.metrics_key, **self._others}))

    @property
    def pictures(self) -> tuple[Any, ...]:
        """Equal for runs that give the same pictures."""
        return bundle_digest(self.bundle), self.settings.key(), self._is_mapped

    @property
    def _is_mapped(self) -> bool:
        return self.settings.residency == "mapped"  # the one residency that rounds otherwise

    @property
    def _others(self) -> dict[str, Any]:
        """What else decides the results."""
        return {"compared_with": self.compared, "mapped": self._is_mapped}

    def results(
        self,
        work: Path,
        exact_photos: Mapping[str, Path],
        progress: Progress,
        on_result: Callable[[ImageResult], object],
    ) -> tuple[ImageResult, ...]:
        """Restore and measure every image; those that were done before are not done again.

        Raises:
            LiveMomentsError: as :func:`livemoments.validate.harness.run.run_images`.
        """
        is_exact = self.compared is None
        return run_images(
            self.bundle,
            self.dataset,
            work=work,
            settings=self.settings,
            options=replace(self.run, metrics=self.metrics, pictures=False, results=is_exact, fresh=False),
            compare_with=exact_photos,
            key=self._others,
            progress=progress,
            on_result=on_result,
        )


def photos_of(results: Sequence[ImageResult], work: Path) -> dict[str, Path]:
    """The restored photos that a run kept, by the images' names."""
    return {result.name: work / result.files[RESULT] for result in results if RESULT in result.files}


def quality_of(
    results: Sequence[ImageResult], exact: Sequence[ImageResult], work: Path, metrics: StandardMetrics
) -> Quality:
    """What a run's pictures are worth, beside those of the exact run.

    Raises:
        EngineError: not one image could be restored.
    """
    done = [result for result in results if result.status == "ok"]
    if not done:
        raise EngineError(f"not one of {len(results)} images could be restored; the first: {results[0].error}")
    aggregated = aggregate_metrics(results, work, metrics)
    exact_by_name = {result.name: result for result in exact if result.status == "ok"}
    pairs = [(result, exact_by_name[result.name]) for result in done if result.name in exact_by_name]
    drops = {}
    for metric in aggregated:
        numbers = [(one.metrics.get(metric.name), other.metrics.get(metric.name)) for one, other in pairs]
        lost = [other - own for own, other in numbers if own is not None and other is not None]
        if lost:
            drops[metric.name] = fmean(lost) if metric.better == "higher" else -fmean(lost)
    # an image that was compared and has no PSNR is equal
    errors = [0.0 if one.parity_psnr_db is None else mse_of(one.parity_psnr_db) for one, _ in pairs]
    mean_error = fmean(errors) if errors else None
    return Quality(
        images=len(done),
        failed=len(results) - len(done),
        metrics=aggregated,
        drops=drops,
        fidelity_db=psnr_of(mean_error) if mean_error else None,
        equal=mean_error == 0.0,
    )


def measure_photo(
    bundle: Bundle,
    settings: RestoreOptions,
    photo: LivePhoto[Path],
    crop: Crop,
    *,
    runs: int,
    progress: Progress = SILENT,
    on_run: Callable[[], object] = lambda: None,
) -> tuple[PointCost, bytes]:
    """Restore a photo in fresh processes, one after the other.

    Returns:
        The cost, and the crop of the result as a JPEG file.

    Raises:
        EngineError: the command failed.
        ResourceError: memory ran out, even if the command went on in another way; or the system killed the process.
    """
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="livemoments-sweep-") as folder:
        output = Path(folder) / "restored.png"
        with progress.task("Restoring a photo in fresh processes", runs) as task:
            for _ in range(runs):
                costs.append(cost_of_run(bundle, settings, photo, output, as_asked=True))
                task.advance()
                on_run()
        picture = crop.of(read_photo(output))
    return (
        PointCost(
            seconds=tuple(cost.photo_s for cost in costs if cost.photo_s is not None),
            load_seconds=tuple(cost.load_s for cost in costs if cost.photo_s is not None),
            memory=_largest([cost.memory for cost in costs]),
        ),
        picture,
    )


def _largest(runs: Sequence[Sequence[Memory]]) -> tuple[Memory, ...]:
    """Every kind's largest peak; a kind that one run could not measure has the reason instead."""
    by_kind: dict[str, Memory] = {}
    for memory in (one for run in runs for one in run):
        before = by_kind.get(memory.kind)
        if before is None or memory.bytes is None or (before.bytes is not None and memory.bytes > before.bytes):
            by_kind[memory.kind] = memory
    return tuple(by_kind.values())
