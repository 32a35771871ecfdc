"""Which linears to quantize, by latency: nvidia-modelopt's ONNX Autotune on each kind of transformer block.

Autotune (``modelopt.onnx.quantization.autotune``, release 0.47) builds a TensorRT engine for one placement of Q/DQ
pairs after another and keeps those that make it faster. It gets copies of the source's blocks in memory, never a path
of ours, and writes to a temporary folder; a whole network of SD3-medium's size would not fit into the one message of
2 GiB that it serializes. Blocks of the same structure are tuned once. What it decides is taken over as our own mix: a
linear is quantized where Autotune put a pair in front of it, with the ranges of our calibration; its own placeholder
scales are dropped. Pairs that it puts elsewhere (norms, sums) have no counterpart in our recipes and are not taken
over.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from livemoments.bundle import Bundle
from livemoments.chains.chain import cut_at_blocks
from livemoments.errors import EngineError, MissingExtraError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.progress import SILENT, Progress
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.recipes import Recipe
from livemoments.types import Stage

if TYPE_CHECKING:
    from modelopt.onnx.quantization.autotune import QDQAutotuner

SCHEMES = 30
"""Placements that are built for each region of a block: Autotune's own default."""
_FEATURE = "nvidia-modelopt's Autotune"


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a stage's graph.

    Attributes:
        model: with its weights, which are named relative to the graph's folder until :meth:`filled`.
        folder: that folder.
        weights: of its linears, in the graph's order.
    """

    model: onnx.ModelProto
    folder: Path
    weights: tuple[str, ...]

    @property
    def structure(self) -> tuple[object, ...]:
        """Equal for blocks that differ in names and in weights' values only."""
        stored = {tensor.name: (tensor.data_type, *tensor.dims) for tensor in self.model.graph.initializer}
        return tuple(
            (node.op_type, *(stored.get(name) for name in node.input)) for node in self.model.graph.node
        ) + tuple(value.type.SerializeToString() for value in self.model.graph.input)

    def filled(self) -> onnx.ModelProto:
        """A copy with the weights' values."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        onnx.load_external_data_for_model(copy, str(self.folder))
        return copy


def check_autotune(bundle: Bundle, recipe: Recipe) -> None:
    """Refuse what Autotune cannot tune, or cannot tune here, before any work.

    Raises:
        UsageError: the recipe rotates or has no Q/DQ pairs that TensorRT takes, the bundle was not exported for it, or
            this machine has no GPU with the TensorRT library and a PyTorch that uses it.
        MissingExtraError: the extra ``modelopt`` is not installed.
    """
    if recipe.action not in (Action.INT8_STATIC, Action.FP8) or "tensorrt" not in recipe.devices:
        raise UsageError(
            f"Autotune places Q/DQ pairs for TensorRT, which the recipe '{recipe.name}' does not have",
            fix="use int8-tensorrt or fp8, or leave --autotune out",
        )
    if recipe.rotation:
        raise UsageError(
            f"Autotune measures Q/DQ pairs without the rotation of '{recipe.name}', which costs time too",
            fix="use int8-tensorrt or fp8, or leave --autotune out",
        )
    if bundle.manifest.target != "tensorrt":
        raise UsageError(
            f"{bundle.path} was not exported for TensorRT, which Autotune builds its graphs with",
            fix="export with --target tensorrt",
        )
    if importlib.util.find_spec("modelopt") is None:
        raise MissingExtraError(_FEATURE, "modelopt", missing="modelopt")
    import torch

    if importlib.util.find_spec("tensorrt") is None or not torch.cuda.is_available():
        lacks = "the TensorRT library" if torch.cuda.is_available() else "an NVIDIA GPU that PyTorch can use"
        raise UsageError(
            f"Autotune measures engines, and this machine has not got {lacks}",
            fix="run it where the engines will run (docs/tensorrt.md), or leave --autotune out",
        )


def autotuned_mix(bundle: Bundle, recipe: Recipe, mix: Mix, *, progress: Progress = SILENT) -> Mix:
    """A mix with those of its linears kept in floating point that are not faster quantized.

    Args:
        bundle: a float bundle for TensorRT; :func:`check_autotune` has passed.
        recipe: the type of the pairs.
        mix: what the recipe does to each linear.
        progress: one step per kind of block.

    Raises:
        EngineError: TensorRT cannot be started, or builds no engine from a block as it is.
    """
    _, workflows = _import_autotune()
    chosen: set[LinearId] = set()
    with tempfile.TemporaryDirectory(prefix="livemoments-autotune-") as scratch:
        cache = str(Path(scratch) / "timing.cache")
        if workflows.init_benchmark_instance(timing_cache_file=cache) is None:
            raise EngineError(f"{_FEATURE} cannot start TensorRT", fix="see its messages above")
        kinds: dict[tuple[object, ...], list[tuple[Stage, Block]]] = {}
        for stage, block in _blocks(bundle, recipe):
            kinds.setdefault((stage, block.structure), []).append((stage, block))
        with progress.task("placing Q/DQ pairs by latency", total=len(kinds)) as task:
            for number, alike in enumerate(kinds.values()):
                stage, block = alike[0]
                task.advance(0, note=str(stage))
                faster = tune_block(block, recipe, Path(scratch) / str(number))
                for of, each in alike:
                    chosen |= {LinearId(str(of), each.weights[place]) for place in faster}
                task.advance()
    return {linear: action if linear in chosen else Action.KEEP for linear, action in mix.items()}


def tune_block(block: Block, recipe: Recipe, scratch: Path) -> set[int]:
    """Places in ``block.weights`` of the linears that are faster quantized.

    Raises:
        EngineError: the block as it is could not be built and timed.
    """
    _, workflows = _import_autotune()
    model = block.filled()
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    tuner = workflows.region_pattern_autotuning_workflow(
        model,
        output_dir=scratch,
        num_schemes_per_region=SCHEMES,
        quant_type="fp8" if recipe.action is Action.FP8 else "int8",
        default_dq_dtype="float16" if half else "float32",
    )
    # its benchmark answers a build that failed with infinity, which would make every placement as good as none
    if tuner.baseline_latency_ms is None or not math.isfinite(tuner.baseline_latency_ms):
        raise EngineError(
            f"TensorRT built no engine from the block of '{block.weights[0]}' before anything was quantized",
            fix="see its messages above, and 'livemoments check --target tensorrt'",
        )
    quantized = _quantized_weights(tuner)
    return {place for place, name in enumerate(block.weights) if name in quantized}


def _quantized_weights(tuner: QDQAutotuner) -> set[str]:
    """The weights that the best placement reads through a pair: both inputs of a product get one, or neither."""
    nodes = tuner.graph.nodes
    return {
        nodes[point.node_index].inputs[1].name
        for point in tuner.get_resolved_insertion_points(best=True)
        if point.node_index is not None and nodes[point.node_index].op == "MatMul"
    }


def _blocks(bundle: Bundle, recipe: Recipe) -> Iterator[tuple[Stage, Block]]:
    """The blocks that have linears, of the first graph of each stage: other tile sizes have the same."""
    for name in recipe.stages:
        path = bundle.path / bundle.manifest.stages[name].graphs[0].path
        for part in cut_at_blocks(path):
            model = onnx.ModelProto.FromString(part.model)
            stored = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
            products = (node for node in model.graph.node if node.op_type == "MatMul")
            weights = tuple(dict.fromkeys(node.input[1] for node in products if node.input[1] in stored))
            if weights:
                yield Stage(name), Block(model, path.parent, weights)


def _import_autotune() -> tuple[Any, Any]:
    """``modelopt.onnx.quantization.autotune`` and its workflows.

    Raises:
        MissingExtraError: one of its packages is not installed.
    """
    try:
        from modelopt.onnx.quantization import autotune
        from modelopt.onnx.quantization.autotune import workflows
    except ImportError as error:
        raise MissingExtraError(_FEATURE, "modelopt", missing=error.name) from None
    return autotune, workflows
