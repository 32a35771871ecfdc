"""onnxruntime: imported late, because it is slow, and quietly; and the one place that opens its sessions."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
THREADS_VARIABLE = "OMP_NUM_THREADS"
CPU_PROVIDER = "CPUExecutionProvider"
ProviderChoice = str | tuple[str, dict[str, str]]
"""A provider's name, or its name and settings."""
EXACT_INTEGERS = "session.x64quantprecision"
"""Session option (``1``: on). x86 processors without VNNI add pairs of 8-bit products u8 x s8 in 16 bits, which
saturates without a word: 1.1 % of the norm of a random 512 x 512 product. With the option onnxruntime moves constant
s8 weights to u8 there, whose products do not saturate; elsewhere it changes nothing. It belongs to the extended
optimizations: integer products of a session that is opened with basic ones alone are not covered."""
_MAPPED_BYTES = 1 << 30
_FATAL_ONLY = 4  # what goes wrong is raised; onnxruntime would write it to the terminal too, in colour


def import_onnxruntime() -> Any:
    """The module, with its telemetry off: official builds report to Microsoft from the import on unless told not to.

    Only this variable stops it before it starts (onnxruntime's Privacy.md); one that is set already is left alone.
    """
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    return importlib.import_module("onnxruntime")


def session_options(threads: int | None = None, *, weights_bytes: int = 0) -> Any:
    """The options that every session begins with: exact integer products, nothing written to the terminal.

    Args:
        threads: threads within an operator; ``None``: what ``OMP_NUM_THREADS`` says, which limits numpy, OpenCV and
            PyTorch too, else onnxruntime's choice, one per physical core.
        weights_bytes: size of the graph's weights, for graphs that run a few times only. Large ones stay mapped from
            their file: onnxruntime's optimizations beyond the basic ones would copy them all.
    """
    options = import_onnxruntime().SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry(EXACT_INTEGERS, "1")
    threads = threads or _threads_of_environment()
    if threads is not None:
        options.intra_op_num_threads = threads
    if weights_bytes > _MAPPED_BYTES:
        options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = False  # an arena keeps what a half-precision network's casts once needed
        options.enable_mem_pattern = False
    return options


def leave_weights_mapped(options: Any) -> None:
    """Have a session read its weights from the mapped file whenever they are needed.

    They are neither packed for the kernels nor converted once for all (half-precision weights, to float32 on a CPU,
    which the optimizations beyond the extended ones do): both would copy them. No arena keeps what a run needed.
    """
    options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False


def _threads_of_environment() -> int | None:
    """``OMP_NUM_THREADS``, of which a list (one entry a level of nesting) counts by its first; ``None`` without one."""
    first = os.environ.get(THREADS_VARIABLE, "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def open_session(
    model: str | Path | bytes, options: Any = None, *, providers: Sequence[ProviderChoice] = (CPU_PROVIDER,)
) -> Any:
    """An ``onnxruntime.InferenceSession``; whatever onnxruntime raises passes through (it shares no base class).

    Args:
        model: a graph's path, or the graph itself.
        options: made by :func:`session_options`, which is the default.
        providers: execution providers, in order of preference; none where the options hold a plugin.
    """
    graph = model if isinstance(model, bytes) else str(model)
    return import_onnxruntime().InferenceSession(graph, options or session_options(), providers=list(providers) or None)
