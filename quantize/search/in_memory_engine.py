"""An engine for a graph that is still in memory: what is tried need not be written to the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError
from livemoments.ort import import_onnxruntime, open_session, session_options
from livemoments.runtime.backends.base import Engine
from livemoments.runtime.backends.ort import OrtEngine
from livemoments.types import Size, Stage

_WEIGHTS_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_MAPPED_BYTES = 1 << 30
"""Weights beyond this stay mapped from the file: onnxruntime's further optimizations would copy them all."""
_PROTOBUF_BYTES = (1 << 31) - (1 << 20)


def load_graph(bundle: Bundle, stage: Stage, size: Size) -> ir.Model:
    """A stage's graph, its weights still on the disk."""
    return ir.load(bundle.path / bundle.graph(stage, size).path)


def open_in_memory(model: ir.Model, bundle: Bundle, stage: Stage, size: Size, threads: int | None = None) -> Engine:
    """Open a changed graph of a bundle on the CPU.

    Weights that the change left alone are read from the bundle's file; new ones are in the graph itself, up to
    protobuf's 2 GiB.

    Args:
        model: the graph; its external tensors are the bundle's.
        bundle: where it came from.
        stage: whose it is.
        size: its tiles' size.
        threads: threads within an operator; ``None`` leaves it to onnxruntime.

    Raises:
        EngineError: onnxruntime does not accept the graph.
        ResourceError: it is too large to be held in one message.
    """
    graph = bundle.graph(stage, size)
    path = bundle.path / graph.path
    own = sum(t.nbytes for v in model.graph.initializers.values() if (t := v.const_value) and not _is_external(t))
    if own > _PROTOBUF_BYTES:
        raise ResourceError(f"{path}: {own / 1e9:.1f} GB of changed weights do not fit into one graph in memory")
    options = session_options(threads)
    options.add_session_config_entry(_WEIGHTS_FOLDER_KEY, str(path.parent.resolve()))
    if _weight_bytes(bundle.path, graph.weights) > _MAPPED_BYTES:
        options.graph_optimization_level = import_onnxruntime().GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    try:
        message = ir.to_proto(model).SerializeToString()
        session = open_session(message, options)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        first: BaseException = error
        while first.__cause__ is not None:  # onnx_ir wraps what went wrong in one error per level
            first = first.__cause__
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise EngineError(f"{path}: the changed graph cannot be loaded: {reason}") from error
    return OrtEngine(stage, session, graph.inputs, graph.outputs, device="cpu", path=path)


def _is_external(tensor: Any) -> bool:
    return isinstance(tensor, ir.ExternalTensor)


def _weight_bytes(folder: Path, names: tuple[str, ...]) -> int:
    return sum((folder / name).stat().st_size for name in names)
