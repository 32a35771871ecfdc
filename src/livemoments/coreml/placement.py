"""Where the system means to run a package's operators: Core ML's compute plan, counted by device.

Written after coremltools' documentation and its source (``MLModel.get_compiled_model_path``,
``MLComputePlan.load_from_path``, macOS 14.4), and never run: no Mac was at hand. Tests call it with a stand-in.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

_DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}
UNKNOWN = "unknown"
"""Operators for which the plan names no device: constants, and what the system folds away."""


def find_placement(model: Any, function: str) -> dict[str, int]:
    """How many operators of a loaded model the system prefers to run on each device.

    Args:
        model: coremltools' ``MLModel``, loaded; it knows its compute units.
        function: the function's name in the program.

    Returns:
        Counts by ``cpu``, ``gpu``, ``ane`` and ``unknown``, without those that are zero.
    """
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), compute_units=model.compute_unit)
    operations = plan.model_structure.program.functions[function].block.operations
    usages = [plan.get_compute_device_usage_for_mlprogram_operation(operation) for operation in operations]
    return dict(Counter(UNKNOWN if usage is None else _device(usage.preferred_compute_device) for usage in usages))


def _device(device: object) -> str:
    return _DEVICES.get(type(device).__name__, UNKNOWN)
