"""A run in a few numbers: the metrics over its images, how many there were, how many failed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from livemoments.validate.harness.metrics import StandardMeasures
from livemoments.validate.harness.run_store import features_file
from livemoments.validate.quality.aggregate import Aggregator, load_features
from livemoments.validate.report_data import Check, ImageResult, Metric

_MOST_NAMED = 3


def aggregate_metrics(
    results: Iterable[ImageResult], work: str | os.PathLike[str], measures: StandardMeasures
) -> tuple[Metric, ...]:
    """The report's metrics, from what :func:`livemoments.validate.harness.run.run_images` returned and kept.

    Args:
        results: in the order of the names; failed ones do not count.
        work: the run's folder, which holds the features for the metrics of the whole set.
        measures: what the images were measured with. Networks are loaded to say why a metric has no number.

    Raises:
        UsageError: a metric is unknown; a file of features is damaged.
    """
    meter = measures.meter()
    meter.open()
    aggregator = Aggregator.for_meter(meter)
    for result in results:
        if result.status == "ok":
            file = features_file(Path(work), result.name)
            features = load_features(file) if file.is_file() else None
            aggregator.add(result.metrics, result.input_metrics, features)
    return aggregator.metrics()


def finish_images(results: Iterable[ImageResult]) -> dict[str, int]:
    """How many images were ``done`` and how many ``failed``."""
    counts = {"done": 0, "failed": 0}
    for result in results:
        counts["done" if result.status == "ok" else "failed"] += 1
    return counts


def image_checks(results: Sequence[ImageResult], *, allowed_failures: int = 0) -> tuple[Check, ...]:
    """``images.done`` (informative) and ``images.failed``, which fails above ``allowed_failures``."""
    counts = finish_images(results)
    bad = [f"{result.name} ({result.error})" for result in results if result.status == "failed"]
    more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
    return (
        Check(name="images.done", value=counts["done"], limit=None, unit="count", better="higher", status="info"),
        Check(
            name="images.failed",
            value=counts["failed"],
            limit=allowed_failures,
            unit="count",
            better="lower",
            status="fail" if counts["failed"] > allowed_failures else "pass",
            detail="; ".join(bad[:_MOST_NAMED]) + more,
        ),
    )
