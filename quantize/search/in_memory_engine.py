"""An engine for a graph that is still in memory: what is tried need not be written to the disk."""

from __future__ import annotations

import onnx_ir as ir

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, ResourceError
from livemoments.ort import open_session, session_options
from livemoments.runtime.backends.base import Engine
from livemoments.runtime.backends.ort import OrtEngine
from livemoments.types import Size, Stage

_WEIGHTS_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
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
        stage: the stage that the graph computes.
        size: the size of its tiles.
        threads: threads within an operator; ``None`` leaves it to onnxruntime.

    Raises:
        EngineError: onnxruntime does not accept the graph.
        ResourceError: it is too large to be held in one message.
    """
    graph = bundle.graph(stage, size)
    path = bundle.path / graph.path
    stored = [value.const_value for value in model.graph.initializers.values()]
    held_bytes = sum(tensor.nbytes for tensor in stored if tensor and not isinstance(tensor, ir.ExternalTensor))
    if held_bytes > _PROTOBUF_BYTES:
        raise ResourceError(f"{path}: {held_bytes / 1e9:.1f} GB of changed weights do not fit into one graph in memory")
    weights_bytes = sum((bundle.path / name).stat().st_size for name in graph.weights)
    options = session_options(threads, weights_bytes=weights_bytes)
    options.add_session_config_entry(_WEIGHTS_FOLDER_KEY, str(path.parent.resolve()))
    try:
        session = open_session(ir.to_proto(model).SerializeToString(), options)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        first: BaseException = error
        while first.__cause__ is not None:  # onnx_ir wraps what went wrong in one error per level
            first = first.__cause__
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise EngineError(f"{path}: the changed graph cannot be loaded: {reason}") from error
    return OrtEngine(stage, session, graph.inputs, graph.outputs, device="cpu", path=path)
