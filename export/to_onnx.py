"""From a stage's module to an ONNX graph whose weights are still in the checkpoint, and from there to files.

The module is traced on the meta device, so no weight is in memory. While the graph is simplified, its weights are
inputs: the optimizer can neither read, fold, merge nor rename them. Then they become initializers again, each a lazy
tensor under its checkpoint name, which is read, converted and written when its turn comes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch

from livemoments.errors import CheckpointError
from livemoments.export.passes.fuse_attention import fuse_attention
from livemoments.export.passes.name_modules import name_modules
from livemoments.export.passes.remove_dead import remove_dead
from livemoments.export.passes.report import PassReport
from livemoments.export.passes.transpose_weights import transpose_weights
from livemoments.export.passes.unroll_iterations import unroll_iterations
from livemoments.export.plan import StageGraph
from livemoments.export.program import export_program, quiet_exporter
from livemoments.export.weights import WeightSource
from livemoments.types import Stage

OPSET = 23
"""The first opset with Attention."""
FLOW_OPSET = 21
"""onnxruntime has no CUDA kernel for the InstanceNormalization of opset 22, which RAFT has 45 of; the CPU's are one."""
WEIGHTS_NAME = "weights.bin"
"""The file of external data that a stage's graphs share."""
_ALIGN_BYTES = 4096
"""Offsets of external tensors: what memory mapping needs."""
_TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}


def trace(graph: StageGraph, *, fuse: bool = True) -> tuple[ir.Model, list[PassReport]]:
    """Trace a stage's module, simplify the graph and bind its weights lazily.

    Args:
        graph: the stage's modules and names, to be traced.
        fuse: rewrite attention for onnxruntime; without, the graph holds standard operators alone.

    Returns:
        The model, whose weights are lazy, and what the graph passes did.
    """
    model = _to_onnx(graph)
    own = _tensors(graph)
    hidden = _hide_weights(model, own)
    _rename_io(model, graph)
    onnxscript.optimizer.optimize_ir(model)
    reports = [name_modules(model)]
    reports += [unroll_iterations(model, graph.repeats)] if graph.repeats else []
    _bind_weights(model, graph, hidden, own)
    reports += [remove_dead(model), transpose_weights(model)]
    if fuse:
        reports.append(fuse_attention(model))
    _normalise(model, graph)
    return model, reports


def _to_onnx(graph: StageGraph) -> ir.Model:
    program = export_program(graph)
    opset = FLOW_OPSET if graph.stage is Stage.FLOW else OPSET
    with quiet_exporter():
        found = torch.onnx.export(program, (), dynamo=True, opset_version=opset, optimize=False, verbose=False)
    model: ir.Model = found.model  # type: ignore[union-attr]  # None is the answer of the older exporter
    return model


def _tensors(graph: StageGraph) -> dict[str, torch.Tensor]:
    own: dict[str, torch.Tensor] = dict(graph.module.named_parameters(remove_duplicate=False))
    return own | dict(graph.module.named_buffers(remove_duplicate=False))


def _hide_weights(model: ir.Model, own: dict[str, torch.Tensor]) -> list[ir.Value]:
    """Make the module's tensors inputs, after the real ones; constants that tracing made stay initializers."""
    graph = model.graph
    hidden = []
    for name, value in list(graph.initializers.items()):
        if name not in own:
            continue
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
        hidden.append(value)
    return hidden


def _rename_io(model: ir.Model, graph: StageGraph) -> None:
    for value, spec in zip(model.graph.inputs, graph.inputs, strict=False):
        value.name = spec.name
    for value, spec in zip(model.graph.outputs, graph.outputs, strict=True):
        value.name = spec.name
    wanted = [spec.name for spec in graph.inputs]
    actual = [value.name for value in model.graph.inputs[: len(wanted)]]
    if actual != wanted:
        raise RuntimeError(f"the traced graph takes {actual}, not {wanted}")


def _bind_weights(model: ir.Model, graph: StageGraph, hidden: list[ir.Value], own: dict[str, torch.Tensor]) -> None:
    for value in hidden:
        parameter = value.name or ""
        model.graph.inputs.remove(value)
        if not value.uses():
            continue
        name = graph.weight_name(parameter)
        tensor = _lazy(graph.weights, name, own[parameter].dtype)
        if tuple(tensor.shape.numpy()) != tuple(own[parameter].shape):
            raise CheckpointError(graph.weights.path, f"'{name}' does not have the shape of {parameter}")
        value.name = name
        value.const_value = tensor
        value.dtype, value.shape = tensor.dtype, tensor.shape
        model.graph.register_initializer(value)


def _lazy(weights: WeightSource, name: str, dtype: torch.dtype) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.tensor(weights.get(name, dtype).contiguous().numpy(), name=name)

    return ir.LazyTensor(read, dtype=_TYPES[dtype], shape=ir.Shape(weights.shape(name)), name=name)


def _normalise(model: ir.Model, graph: StageGraph) -> None:
    """Names and types of inputs and outputs as specified; no traces of the machine or the tracer."""
    _name_axes(model, graph)
    for value, spec in zip((*model.graph.inputs, *model.graph.outputs), (*graph.inputs, *graph.outputs), strict=True):
        value.shape = ir.Shape(spec.shape)
        value.dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
    model.producer_name, model.producer_version = "livemoments", None
    model.graph.name = str(graph.stage)


def _name_axes(model: ir.Model, graph: StageGraph) -> None:
    """Give the tracer's symbols the names of the free axes; drop the shapes of intermediate values that mix them."""
    names: dict[str | None, str] = {}
    for value, spec in zip(model.graph.inputs, graph.inputs, strict=True):
        for dim, axis in zip(value.shape or (), spec.shape, strict=True):
            if isinstance(dim, ir.SymbolicDim) and isinstance(axis, str):
                names[dim.value] = axis
    for node in model.graph:
        for value in node.outputs:
            if value.shape is None:
                continue
            free = [dim.value for dim in value.shape if isinstance(dim, ir.SymbolicDim)]
            known = all(symbol in names for symbol in free)
            dims = [names[d.value] if isinstance(d, ir.SymbolicDim) else d for d in value.shape] if known else None
            value.shape = None if dims is None else ir.Shape(dims)


class WeightsFile:
    """External data that several graphs share: each tensor is written once, by its name.

    Args:
        path: the file, which is created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, ir.ExternalTensor] = {}
        self._stream = path.open("wb")

    def add(self, tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
        """Write a tensor unless a graph before wrote one of this name; where it is."""
        if name in self._written:
            return self._written[name]
        self._stream.write(b"\0" * (-self._stream.tell() % _ALIGN_BYTES))
        offset = self._stream.tell()
        data = tensor.tobytes()
        self._stream.write(data)
        shape = ir.Shape(tensor.shape.numpy())
        external = ir.ExternalTensor(
            self.path.name, offset, len(data), tensor.dtype, shape=shape, name=name, base_dir=self.path.parent
        )
        self._written[name] = external
        return external

    def close(self) -> None:
        """Finish the file."""
        self._stream.close()


def save(model: ir.Model, path: Path, weights: WeightsFile) -> None:
    """Write a graph beside its weights: each lazy initializer is read, written and forgotten in turn."""
    for name, value in model.graph.initializers.items():
        if isinstance(value.const_value, ir.LazyTensor):
            value.const_value = weights.add(value.const_value, name)
    ir.save(model, path)
