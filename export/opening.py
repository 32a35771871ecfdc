"""Opening a checkpoint for an export: its layout, its small files, and the schedule that the export will fold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from livemoments.errors import MissingExtraError, UsageError
from livemoments.export.options import ExportOptions
from livemoments.schedule import DEFAULT_STEPS, build_schedule

if TYPE_CHECKING:
    from livemoments.export.plan import Planner


def open_planner(checkpoint: str | Path, options: ExportOptions) -> Planner:
    """The checkpoint's planner, from its small files alone.

    Raises:
        MissingExtraError: the extra ``export`` is not installed.
        CheckpointError: the checkpoint does not have the layout.
        UsageError: no step count was given.
    """
    try:
        import onnx  # noqa: F401  (onnx_ir's and onnxscript's absence would show only halfway)
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
        import torch

        from livemoments.export.plan import Planner
        from livemoments.reference.checkpoint import read_configs, read_prompt
        from livemoments.reference.layout import locate
    except ImportError as error:
        raise MissingExtraError("export to ONNX", "export", missing=error.name) from None
    files = locate(checkpoint)
    configs = read_configs(files)
    counts = sorted(set(options.steps))
    if not counts:
        raise UsageError("no step count was given", fix=f"give at least one, e.g. {DEFAULT_STEPS}")
    schedule = build_schedule(
        counts,
        shift=configs.schedule.shift,
        train_steps=configs.schedule.num_train_timesteps,
        default_steps=DEFAULT_STEPS if DEFAULT_STEPS in counts else counts[-1],
    )
    dtype = torch.float32 if options.precision == "fp32" else torch.float16
    return Planner(files, configs, read_prompt(files, configs.transformer), schedule, dtype, options.kv_layout)
