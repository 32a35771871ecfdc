"""Compress the linears of one function of a package, through coremltools.optimize.

coremltools compresses whatever its configuration reaches and says nothing of what it leaves; the configuration here
names operators, and :mod:`livemoments.quantize.packages.check` holds the result against the source afterwards. Two of
its features are not used: scales per channel beside palettes (they change constants that are then left uncompressed),
and its calibration of activations (which keeps the range of the last sample only).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from livemoments.errors import EngineError
from livemoments.export.coreml.convert import CONVERTER_ERRORS, converter, save_program
from livemoments.quantize.actions import Action
from livemoments.quantize.packages.palettes import find_palette
from livemoments.quantize.recipes import Recipe


class Target(msgspec.Struct, frozen=True):
    """A linear to compress.

    Attributes:
        constant: the name of its weight in the program; operators' names change when coremltools reads them.
        input_scale: of the 8-bit integers that its input is rounded to; read where the recipe rounds activations.
    """

    constant: str
    input_scale: float = 1.0


def compress(source: Path, function: str, path: Path, targets: Sequence[Target], recipe: Recipe) -> None:
    """Write one function of a package, as a package of its own, with compressed linears.

    Args:
        source: the package.
        function: its function.
        path: the new package; its function is ``main``.
        targets: the linears; all others, and all other constants, stay as they are.
        recipe: how their weights are stored.

    Raises:
        EngineError: coremltools does not do it.
    """
    with converter() as ct:
        from coremltools.converters.mil.frontend.milproto import load as milproto
        from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

        model = ct.models.MLModel(str(source), skip_model_load=True)
        try:
            program = milproto.load(
                model_spec=model.get_spec(),
                specification_version=ct.target.iOS18,
                file_weights_dir=model.weights_dir,
            )
            program.functions = {"main": program.functions[function]}
            program.default_function_name = "main"
            if recipe.action is Action.INT8_STATIC:
                _round_inputs(program, {target.constant: target.input_scale for target in targets})
            compression = PASS_REGISTRY[f"compression::{_pass_of(recipe)}"]
            compression.config = _configuration(ct.optimize.coreml, recipe, [target.constant for target in targets])
            compression.apply(program)
            save_program(program, path, optimize=False)
        except CONVERTER_ERRORS as error:
            raise EngineError(f"{source.name}: coremltools does not compress the package ({error})") from error


def _pass_of(recipe: Recipe) -> str:
    return "palettize_weights" if recipe.action is Action.PALETTE else "linear_quantize_weights"


def _configuration(optimize: Any, recipe: Recipe, constants: Sequence[str]) -> Any:
    """Of the named constants alone; without a lower limit on a weight's size, which would leave some out silently."""
    if recipe.action is Action.PALETTE:
        grouped = {"granularity": "per_grouped_channel", "group_size": recipe.group_rows} if recipe.group_rows else {}
        palette = functools.partial(find_palette, bits=recipe.bits)
        how = optimize.OpPalettizerConfig(mode="custom", lut_function=palette, weight_threshold=0, **grouped)
    else:
        blocks = {"granularity": "per_block", "block_size": recipe.block_size} if recipe.block_size else {}
        how = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric" if recipe.symmetric else "linear",
            dtype="int4" if recipe.action is Action.WEIGHT_INT4 else "int8",
            weight_threshold=0,
            **(blocks or {"granularity": "per_channel"}),
        )
    return optimize.OptimizationConfig(op_name_configs=dict.fromkeys(constants, how))


def _round_inputs(program: Any, scales: Mapping[str, float]) -> None:
    """Round the inputs of linears to 8-bit integers and back; linears that share an input share the rounding."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

    (block,) = program.functions.values()
    rounded: dict[str, Any] = {}
    with block:
        for linear in list(block.operations):
            if linear.op_type != "linear" or linear.inputs["weight"].name not in scales:
                continue
            made, value = linear.outputs[0], linear.inputs["x"]
            if value.name not in rounded:
                scale = np.dtype(types.nptype_from_builtin(value.dtype)).type(scales[linear.inputs["weight"].name])
                integers = mb.quantize(input=value, scale=scale, output_dtype="int8", before_op=linear)
                rounded[value.name] = mb.dequantize(input=integers, scale=scale, before_op=linear)
            arguments = dict(linear.inputs) | {"x": rounded[value.name]}
            again = mb.linear(**arguments, before_op=linear, name=linear.name)
            block.replace_uses_of_var_after_op(anchor_op=linear, old_var=made, new_var=again)
            block.remove_ops([linear])
            again.name = made.name
