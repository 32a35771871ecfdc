"""A data set to validate on, and how it is gone through: data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from livemoments.validate.harness.metrics import StandardMeasures
from livemoments.validate.harness.run import EngineKind


@dataclass(frozen=True)
class DataPlan:
    """A data set, and how it is gone through.

    Attributes:
        folder: ``lr/``, ``ref/`` and perhaps ``ref_lr/`` and ``gt/``.
        name: of a known set (``synlive260`` …) that the folder must be; brings the paper's rows.
        limit: at most this many images.
        measures: the quality metrics.
        engine, workers, ray_address: where (:func:`livemoments.validate.harness.run.run_images`).
        pictures: small pictures for the report.
        allowed_failures: images that may fail without failing the run.
        fresh: begin anew, whatever an earlier run left.
    """

    folder: Path
    name: str | None = None
    limit: int | None = None
    measures: StandardMeasures = field(default_factory=StandardMeasures)
    engine: EngineKind = "local"
    workers: int | None = None
    ray_address: str | None = None
    pictures: bool = True
    allowed_failures: int = 0
    fresh: bool = False
