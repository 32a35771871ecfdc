"""Write one stage of a quantized bundle, its weights one tensor at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec
import onnx_ir as ir

from livemoments.bundle import Bundle
from livemoments.export.to_onnx import WEIGHTS_NAME, WeightsFile
from livemoments.graphs.linears import LinearId, find_linears
from livemoments.graphs.tensors import read_tensor
from livemoments.manifest import Graph, StageEntry
from livemoments.quantize.actions import Action, Mix
from livemoments.quantize.calibrate.result import LinearStats
from livemoments.quantize.recipes import PACKAGES, Recipe
from livemoments.quantize.rewrite.attention import int8_keys_values, quantize_keys_values, quantize_operands
from livemoments.quantize.rewrite.half import half_specs, to_fp16
from livemoments.quantize.rewrite.run import rewrite
from livemoments.quantize.rewrite.smoothquant import smooth
from livemoments.types import Stage

StageWriter = Callable[
    [Bundle, Path, Stage, Recipe, Mix, Mapping[LinearId, LinearStats] | None],
    StageEntry,
]
"""Writes a quantized stage: see :func:`quantize_stage`."""


def find_writer(bundle: Bundle) -> StageWriter:
    """What writes quantized stages of such a bundle."""
    if bundle.manifest.target != PACKAGES:
        return quantize_stage
    from livemoments.quantize.packages.stage import compress_stage

    return compress_stage


def copy_stage(bundle: Bundle, folder: Path, entry: StageEntry) -> None:
    """Copy a stage that stays as it is."""
    for name in dict.fromkeys(name for graph in entry.graphs for name in graph.files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, folder / name)


def quantize_stage(
    bundle: Bundle,
    folder: Path,
    stage: Stage,
    recipe: Recipe,
    mix: Mix,
    stats: Mapping[LinearId, LinearStats] | None,
) -> StageEntry:
    """Rewrite and write every graph of a stage beside one file of weights.

    Args:
        bundle: the source.
        folder: the new bundle's folder.
        stage: the stage to rewrite.
        recipe: how its linears are quantized.
        mix: what happens to each linear.
        stats: what calibration saw in the source.

    Returns:
        The stage's entry, without parity.
    """
    entry = bundle.stage(stage)
    (folder / str(stage)).mkdir()
    graphs = []
    with contextlib.closing(WeightsFile(folder / str(stage) / WEIGHTS_NAME)) as weights:
        for graph in entry.graphs:
            model = ir.load(bundle.path / graph.path)
            linears, known = find_linears(model, str(stage)), stats
            if recipe.smoothquant_alpha is not None and known is not None:
                known = smooth(model, linears, known, recipe.smoothquant_alpha)
            rewrite(model, linears, mix, recipe, known)
            if recipe.attention:
                quantize_operands(model, stage, known, fp8=recipe.action is Action.FP8)
            if recipe.keys_values:
                quantize_keys_values(model, stage, known)
            if recipe.half:
                to_fp16(model)
            path = f"{stage}/{graph.size}.onnx"
            _save(model, folder / path, weights)
            convert = half_specs if recipe.half else int8_keys_values if recipe.keys_values else tuple
            graphs.append(
                Graph(
                    path=path,
                    size=graph.size,
                    weights=(f"{stage}/{WEIGHTS_NAME}",),
                    inputs=convert(graph.inputs),
                    outputs=convert(graph.outputs),
                )
            )
    return msgspec.structs.replace(entry, precision=recipe.precision, graphs=tuple(graphs), parity=())


def _save(model: ir.Model, path: Path, weights: WeightsFile) -> None:
    """Write a graph beside its weights: each is read, converted, written and forgotten in turn."""
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            lazy = ir.LazyTensor(partial(_read, tensor), dtype=tensor.dtype, shape=tensor.shape, name=name)
            value.const_value = weights.add(lazy, name)
        elif isinstance(tensor, ir.LazyTensor):
            value.const_value = weights.add(tensor, name)
    ir.save(model, path)


def _read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.tensor(read_tensor(tensor), dtype=tensor.dtype, name=tensor.name)
