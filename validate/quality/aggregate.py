"""The metrics over a data set: a stream of images, in memory that does not grow with their number.

Means and deviations are exact: the same bits in any order, from any split over workers, and again from per-image
results that were written earlier. The Frechet distance's sums are float64 and depend on the order in their
last digits: add images in the data set's order.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from livemoments.errors import UsageError
from livemoments.store.files import write_file
from livemoments.validate.quality.frechet import FeatureSums, frechet_distance
from livemoments.validate.quality.meter import INFINITE, QualityMeter
from livemoments.validate.quality.registry import MetricSpec
from livemoments.validate.report_data import Metric


class ExactMoments:
    """Count, sum and sum of squares of finite doubles: the same bits in any order.

    A double is a whole multiple of 2^-1074, so both sums are fractions within some hundred bytes for any count of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._total = self._squares = Fraction(0)

    def add(self, value: float) -> None:
        """Take a number.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in a mean")
        exact = Fraction(value)
        self.count += 1
        self._total += exact
        self._squares += exact * exact

    @property
    def mean(self) -> float | None:
        """The mean, rounded once; ``None`` of nothing."""
        return float(self._total / self.count) if self.count else None

    @property
    def std(self) -> float | None:
        """The population's standard deviation; 0 of one number, ``None`` of nothing."""
        if not self.count:
            return None
        return math.sqrt(self._squares / self.count - (self._total / self.count) ** 2)  # exact, so never below 0


class Aggregator:
    """Takes what a meter measured of images, one by one.

    Args:
        meter: its metrics and convention of y; why it has no number for one is read when the rows are made.
    """

    def __init__(self, meter: QualityMeter) -> None:
        self.specs = meter.specs
        self._luma, self._problems = meter.luma, meter.problems
        self._outputs = {spec.name: ExactMoments() for spec in self.specs}
        self._inputs = {spec.name: ExactMoments() for spec in self.specs}
        self._infinite = dict.fromkeys(self._outputs, 0)
        self._sums = {
            f"{spec.name}.{role}": FeatureSums()
            for spec in self.specs
            if spec.kind == "frechet"
            for role in ("output", "truth")
        }
        self._featured = dict.fromkeys(self._outputs, 0)

    def add(
        self,
        metrics: Mapping[str, float | None],
        input_metrics: Mapping[str, float | None] | None = None,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Take one image: the fields of an :class:`ImageQuality`, or what was written of them.

        Entries of metrics that were not asked for are left alone.

        Raises:
            UsageError: features of another length than before.
        """
        for moments, values in ((self._outputs, metrics), (self._inputs, input_metrics or {})):
            for name, each in moments.items():
                value = values.get(name)
                if value is not None:
                    each.add(value)
        for name in self._infinite:
            self._infinite[name] += bool(metrics.get(name + INFINITE))
        for key, sums in self._sums.items():
            if features is not None and key in features:
                sums.add(features[key])
                self._featured[key.split(".")[0]] += key.endswith(".output")

    def metrics(self) -> tuple[Metric, ...]:
        """The report's rows, one for each metric that was asked for; without a number, the status says why."""
        return tuple(self._row(spec) for spec in self.specs)

    def _row(self, spec: MetricSpec) -> Metric:
        own, inputs, infinite = self._outputs[spec.name], self._inputs[spec.name], self._infinite[spec.name]
        count, mean, std = own.count, own.mean, own.std
        if spec.kind == "frechet":
            first, second = (self._sums[f"{spec.name}.{role}"] for role in ("output", "truth"))
            count = self._featured[spec.name]
            mean = frechet_distance(first, second) if min(first.count, second.count) >= 2 else None
        title = spec.title(self._luma)
        if infinite:
            title += f"; {infinite} equal to the truth left out"
        status = "ok"
        if mean is None:
            status = self._problems.get(spec.name) or (
                "infinite: every image equals its ground truth" if infinite else spec.why_no_image
            )
        return Metric(
            name=spec.name,
            title=title,
            better=spec.better,
            unit=spec.unit,
            count=count,
            mean=mean,
            std=std,
            input_mean=inputs.mean,
            status=status,
        )


def save_features(path: Path, features: Mapping[str, np.ndarray]) -> None:
    """Write one image's :attr:`ImageQuality.features` as ``.npz``, whole or not at all, for a run that goes on later.

    Raises:
        OutputError: it cannot be written.
        ResourceError: the disk is full.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **dict(features))  # type: ignore[arg-type]
    write_file(path, buffer.getvalue())


def load_features(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`save_features` wrote.

    Raises:
        UsageError: the file is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile's, numpy's and the system's
        raise UsageError(f"{path}: not a file of arrays that can be read: {error}") from error
