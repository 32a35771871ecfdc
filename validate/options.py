"""What a validation checks and how: data, with its own checks."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.device_checks import check_provider
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.report.write import FORMATS, check_formats
from livemoments.validate.report_data import LEVELS, Level


@dataclass(frozen=True, slots=True)
class DataOptions:
    """A data set to validate on, and how it is gone through.

    Attributes:
        folder: ``lr/``, ``ref/`` and perhaps ``ref_lr/`` and ``gt/``.
        name: the known set (``synlive260`` …) that the folder must be; brings the paper's rows.
        limit: at most this many images.
        allowed_failures: images that may fail without failing the run.
        run: what is measured, where, and whether an earlier run is continued.
    """

    folder: Path
    name: str | None = None
    limit: int | None = None
    allowed_failures: int = 0
    run: RunOptions = field(default_factory=RunOptions)

    @property
    def metrics(self) -> StandardMetrics:
        """What is measured of every image.

        Raises:
            UsageError: it is not the package's own metrics, which alone a report can hold.
        """
        if not isinstance(self.run.metrics, StandardMetrics):
            raise UsageError("a report holds the package's own metrics only", fix="call run_images for others")
        return self.run.metrics


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The options of :func:`livemoments.validate.run.validate_bundle`.

    Attributes:
        restore: how images are restored.
        levels: rungs of the parity ladder.
        find_fault: bisect: name the first block, module and ONNX node that leaves the reference.
        check_itself: checks that need no reference: batches, tile order, repetition.
        compare_interpreter: of Core ML packages on a Mac: hold the device's answers against the interpreter's.
        prompt: another prompt's folder, as ``livemoments make-prompt`` writes it: what it would change of the
            checkpoint's photo is reported; needs a checkpoint.
        cost_runs: timed runs of each stage; 0 measures no cost.
        baseline: an earlier ``report.json``; what is worse beyond noise fails.
        limits: a limits file instead of the shipped ``validate/limits.toml``.
        formats: of the report's files.
        command: what was typed, for the report.
    """

    restore: RestoreOptions = field(default_factory=RestoreOptions)
    levels: tuple[Level, ...] = LEVELS
    find_fault: bool = False
    check_itself: bool = True
    compare_interpreter: bool = False
    prompt: Path | None = None
    cost_runs: int = 0
    baseline: str | os.PathLike[str] | None = None
    limits: str | os.PathLike[str] | None = None
    formats: tuple[str, ...] = FORMATS
    command: str = ""

    def check(self, *, has_reference: bool, has_checkpoint: bool) -> None:
        """Refuse what would fail later, after the work.

        Raises:
            UsageError: an option cannot be used, or needs a reference that was not named.
        """
        if self.find_fault and not has_reference:
            raise UsageError("to bisect, there must be a reference", fix="name a checkpoint or a recording")
        if self.prompt is not None and not has_checkpoint:
            raise UsageError("another prompt needs the networks in PyTorch", fix="name the checkpoint")
        if self.cost_runs < 0:
            raise UsageError(f"{self.cost_runs} timed runs are not possible", fix="use 1 or more, or 0 for no cost")
        if unknown := [level for level in self.levels if level not in LEVELS]:
            raise UsageError(f"'{unknown[0]}' is not a rung of the ladder", fix=f"use {', '.join(LEVELS)}")
        check_formats(self.formats)

    def check_for(self, bundle: Bundle, *, has_data: bool) -> None:
        """Refuse what this bundle cannot give, or this system.

        Raises:
            UsageError: a stage is missing; the interpreter has no device to be compared with.
        """
        if self.compare_interpreter:
            check_provider(bundle, self.restore.provider)
        if bundle.missing_stages and (has_data or self.cost_runs):
            raise UsageError(
                f"{bundle.path} has no stage '{bundle.missing_stages[0]}', so no photo can be "
                f"{'restored' if has_data else 'timed'}",
                fix="export every stage, or leave --dataset out and say --no-cost",
            )
