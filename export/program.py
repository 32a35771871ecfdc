"""A stage's module to a ``torch.export`` program: what the ONNX graph and torch-tensorrt's networks are made of.

A graph's program is traced on the meta device and has free axes; an engine's has all weights, and every axis fixed.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from livemoments.export.plan import ANY_SIZE, FLOW_EXAMPLE_PX, FLOW_MULTIPLE_PX, Planner, StageGraph
from livemoments.reference.checkpoint import load_flow
from livemoments.types import Size, Stage, TensorSpec

_EXAMPLE_BATCH = 2  # with 1 the exporter freezes the batch
_MAX_BATCH = 32
"""Only while tracing; graphs are not bound by it."""
_UPSAMPLED_ELEMENTS = 1 << 31
_UPSAMPLED_CHANNELS = 128
"""diffusers' upsampling copies a tensor whose elements, times its scale, pass 2^31; SD3's decoder has the most before
its last upsampling: 256 channels at half of the tile's sides, times 2. The copy changes nothing in a graph, but a trace
has to stay on one side of the branch for every batch it stands for."""


def export_program(graph: StageGraph) -> torch.export.ExportedProgram:
    """The program of a graph: batch, height and width stay free where the graph's specs name them."""
    device = next(graph.module.parameters()).device
    free = {"batch": _EXAMPLE_BATCH, "height": FLOW_EXAMPLE_PX, "width": FLOW_EXAMPLE_PX}
    arguments = tuple(_example(spec, free, device) for spec in graph.inputs)
    dims = _free_dims(graph.inputs, traced_batches(graph.size))
    shapes = tuple(_dynamic(spec, dims) for spec in graph.inputs)
    with quiet_exporter():
        return torch.export.export(
            graph.module.eval(), nest(graph, arguments), dynamic_shapes=nest(graph, shapes), strict=False
        )


def export_fixed(planner: Planner, graph: StageGraph, lengths: Mapping[str, int]) -> torch.export.ExportedProgram:
    """The same module's program with its weights and without free axes.

    Args:
        planner: of the checkpoint.
        graph: one of its graphs.
        lengths: of the axes ``batch``, ``height`` and ``width``.
    """
    arguments = tuple(_example(spec, lengths, torch.device("cpu")) for spec in graph.inputs)
    with quiet_exporter():
        return torch.export.export(whole_module(planner, graph), nest(graph, arguments), strict=False)


def whole_module(planner: Planner, graph: StageGraph) -> nn.Module:
    """A stage's module with its weights; RAFT's with all of its iterations, which graphs get by a pass instead."""
    module = load_flow(planner.files, torch.device("cpu")) if graph.stage is Stage.FLOW else graph.module
    return filled(module, graph)


def filled(module: nn.Module, graph: StageGraph) -> nn.Module:
    """The module with the weights that it still lacks (those on the meta device), in its own types."""
    for holder_name, holder in module.named_modules(remove_duplicate=False):
        for store in (holder._parameters, holder._buffers):
            for name, tensor in store.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                path = f"{holder_name}.{name}" if holder_name else name
                value = graph.weights.get(graph.weight_name(path), tensor.dtype).contiguous()
                store[name] = nn.Parameter(value, requires_grad=False) if store is holder._parameters else value
    return module.eval().requires_grad_(False)


def nest(graph: StageGraph, flat: tuple[Any, ...]) -> tuple[Any, ...]:
    """A flat row of inputs as the module takes it: RestorationNet has its keys and values as one sequence."""
    first = next((i for i, spec in enumerate(graph.inputs) if spec.name.startswith("reference_")), None)
    return flat if first is None else (*flat[:first], list(flat[first:]))


def _example(spec: TensorSpec, lengths: Mapping[str, int], device: torch.device) -> torch.Tensor:
    shape = [lengths[axis] if isinstance(axis, str) else axis for axis in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device)


def traced_batches(size: str) -> tuple[int, int]:
    """The least and the largest batch that a trace of tiles ``WxH`` (or ``any``) stands for.

    All of them are on the same side of the branch in diffusers' upsampling. Beyond 2896 x 2896 pixels the example's
    batch of two is already past it, and one alone may not be; the upsampling before it, of half as many elements, then
    holds the other end.
    """
    if size == ANY_SIZE:
        return 1, _MAX_BATCH
    tile = Size.parse(size)
    elements = _UPSAMPLED_CHANNELS * tile.height * tile.width
    if _EXAMPLE_BATCH * elements <= _UPSAMPLED_ELEMENTS:
        return 1, min(_MAX_BATCH, _UPSAMPLED_ELEMENTS // elements)
    return _EXAMPLE_BATCH, max(_EXAMPLE_BATCH, 2 * _UPSAMPLED_ELEMENTS // elements)


def _free_dims(specs: tuple[TensorSpec, ...], batches: tuple[int, int]) -> dict[str, Any]:
    names = {axis for spec in specs for axis in spec.shape if isinstance(axis, str)}
    dims: dict[str, Any] = {}
    for name in sorted(names):
        if name == "batch":
            dims[name] = torch.export.Dim(name, min=batches[0], max=batches[1])
        else:
            dims[name] = FLOW_MULTIPLE_PX * torch.export.Dim(f"{name}_cells", min=8, max=4096)
    return dims


def _dynamic(spec: TensorSpec, dims: dict[str, Any]) -> dict[int, Any]:
    return {index: dims[axis] for index, axis in enumerate(spec.shape) if isinstance(axis, str)}


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """The exporter warns about absent packages and deprecations of its own, which no user can mend."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
