"""A stage's module to a network of the library, by torch-tensorrt; the building process imports this.

torch-tensorrt's one call that goes from a program to an engine opens the engine on a GPU, calls its outputs
``output0``, ``output1``, …, serves no other GPU than the one at hand and reports nothing on the way. So only its first
half is taken, the steps of ``convert_exported_program_to_serialized_trt_engine`` of torch-tensorrt 2.13 up to the
network; names, compute capabilities, flags and progress are then the same on both roads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from livemoments.errors import EngineError
from livemoments.export.plan import Planner
from livemoments.export.program import export_fixed
from livemoments.export.tensorrt.protocol import TorchSource
from livemoments.export.tensorrt.torch_road import import_torch_tensorrt
from livemoments.reference.checkpoint import read_configs, read_prompt
from livemoments.reference.layout import locate
from livemoments.types import Size, TensorSpec

_OTHER_ROAD = "leave --via out: the graphs are built from"
_DATA_TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
"""Of specs, as the library calls them."""
_TYPES = {"fp32": torch.float32, "fp16": torch.float16}


class TorchNetwork(NamedTuple):
    """A network and what must live until its engine is built.

    Attributes:
        builder: of the library, that made the network.
        network: the library's own object; its tensors have the graph's names.
        weights: whatever holds the memory of the network's constants.
    """

    builder: Any
    network: Any
    weights: Any


def make_network(source: TorchSource, size: Size, batch: int) -> TorchNetwork:
    """Trace a stage with fixed axes and convert it.

    Raises:
        EngineError: torch-tensorrt cannot be imported, has no converter for an operator, or made other inputs or
            outputs than the graph has.
    """
    import_torch_tensorrt()
    from torch_tensorrt import Input
    from torch_tensorrt.dynamo import CompilationSettings
    from torch_tensorrt.dynamo.conversion import TRTInterpreter
    from torch_tensorrt.dynamo.conversion._conversion import infer_module_output_dtypes
    from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering

    files = locate(source.checkpoint)
    configs = read_configs(files)
    prompt = read_prompt(files, configs.transformer)
    planner = Planner(files, configs, prompt, source.schedule, _TYPES[source.precision], source.kv_layout)
    graph = planner.graph(source.stage, size)
    lengths = {"batch": batch, "height": size.height, "width": size.width}
    inputs, outputs = ([_fixed(spec, lengths) for spec in specs] for specs in (graph.inputs, graph.outputs))
    settings = CompilationSettings(
        require_full_compilation=True,
        attn_bias_is_causal=False,  # by default, biases of attention are taken for causal masks
        offload_module_to_cpu=False,  # it is there
    )
    program = pre_export_lowering(export_fixed(planner, graph, lengths), settings)
    program = program.run_decompositions(get_decompositions(False, settings.decompose_attention, False))
    module = post_lowering(program.module(), settings)
    interpreter = TRTInterpreter(
        module,
        [Input(shape=spec.shape, dtype=getattr(torch, spec.dtype)) for spec in inputs],
        output_dtypes=infer_module_output_dtypes(module),
        compilation_settings=settings,
    )
    if missing := sorted(interpreter.validate_conversion()):
        raise EngineError(f"torch-tensorrt has no converter for {', '.join(missing)}", fix=_OTHER_ROAD)
    interpreter._construct_trt_network_def()
    network = interpreter.ctx.net
    _name(inputs, [network.get_input(index) for index in range(network.num_inputs)])
    _name(outputs, [network.get_output(index) for index in range(network.num_outputs)])
    return TorchNetwork(interpreter.builder, network, interpreter)


def _fixed(spec: TensorSpec, lengths: dict[str, int]) -> TensorSpec:
    return TensorSpec(spec.name, spec.dtype, tuple(lengths[a] if isinstance(a, str) else a for a in spec.shape))


def _name(specs: list[TensorSpec], tensors: list[Any]) -> None:
    """Give a network's tensors the graph's names, by their order."""
    made = [(tuple(tensor.shape), tensor.dtype.name) for tensor in tensors]
    wanted = [(tuple(spec.shape), _DATA_TYPES[spec.dtype]) for spec in specs]
    if made != wanted:
        raise EngineError(f"torch-tensorrt made tensors {made}, and the graph has {wanted}", fix=_OTHER_ROAD)
    for spec, tensor in zip(specs, tensors, strict=True):
        tensor.name = spec.name
