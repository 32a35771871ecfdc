"""A run in a few numbers: the metrics over its images, how many there were, how many failed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.run_store import features_file
from livemoments.validate.quality.aggregate import Aggregator, load_features
from livemoments.validate.report.numbers import first_few
from livemoments.validate.report_data import Check, ImageResult, Metric

_MOST_NAMED = 3


def aggregate_metrics(
    results: Iterable[ImageResult], work: str | os.PathLike[str], metrics: StandardMetrics
) -> tuple[Metric, ...]:
    """The report's metrics, from what :func:`livemoments.validate.harness.run.run_images` returned and kept.

    Args:
        results: in the order of the names; failed ones do not count.
        work: the run's folder, which holds the features for the metrics of the whole set.
        metrics: what the images were measured with. Networks are loaded to say why a metric has no number.

    Raises:
        UsageError: a metric is unknown; a file of features is damaged.
    """
    meter = metrics.meter()
    meter.open()
    aggregator = Aggregator(meter)
    for result in results:
        if result.status == "ok":
            file = features_file(Path(work), result.name)
            features = load_features(file) if file.is_file() else None
            aggregator.add(result.metrics, result.input_metrics, features)
    return aggregator.metrics()


def image_checks(results: Sequence[ImageResult], *, allowed_failures: int = 0) -> tuple[Check, ...]:
    """``images.done`` (informative) and ``images.failed``, which fails above ``allowed_failures``."""
    failed = [f"{result.name} ({result.error})" for result in results if result.status == "failed"]
    done = len(results) - len(failed)
    return (
        Check(name="images.done", value=done, limit=None, unit="count", better="higher", status="info"),
        Check(
            name="images.failed",
            value=len(failed),
            limit=allowed_failures,
            unit="count",
            better="lower",
            status="fail" if len(failed) > allowed_failures else "pass",
            detail=first_few(failed, _MOST_NAMED, "; "),
        ),
    )
