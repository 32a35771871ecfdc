"""Weight-only linears: onnxruntime's ``MatMulNBits``.

Requires: nothing; with calibration, ``hqq`` weighs errors by the inputs' mean squares.
Ensures: each target is one ``com.microsoft.MatMulNBits`` with 8- or 4-bit weights in blocks along the inputs; biases
stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from livemoments.quantize.recipes import Recipe
from livemoments.quantize.rewrite.graph_edit import GraphEditor, LastResult, Target, as_scale, float_type, read_weight
from livemoments.quantize.rewrite.input_ranges import StatsOf
from livemoments.quantize.rewrite.round_weights import BlockWeights, quantize_blocks

DOMAIN = "com.microsoft"
_INT8_COMPUTE = 4
"""``accuracy_level``: the input is quantized to int8 by blocks while the product runs."""


def rewrite_weights(
    model: ir.Model, targets: Sequence[Target], recipe: Recipe, stats: StatsOf | None, bits: int
) -> None:
    """Apply the rewrite with 8 or 4 bits; ``model`` is changed in place."""
    editor, memory = GraphEditor(model), LastResult()
    for target in targets:
        editor.replace(target.node, _product(editor, target, recipe, stats, bits, memory))
    if targets:
        model.graph.opset_imports[DOMAIN] = 1


def _product(
    editor: GraphEditor, target: Target, recipe: Recipe, stats: StatsOf | None, bits: int, memory: LastResult
) -> ir.Value:
    linear, weight = target.linear, target.weight
    name, kind, size = linear.id.weight, float_type(target), recipe.block_size
    rows, columns = linear.in_features, linear.out_features
    blocks = -(-rows // size)
    seen = None if stats is None else stats.get(linear.id)

    def result() -> BlockWeights:
        return memory.of(
            name,
            lambda: quantize_blocks(
                read_weight(weight),
                bits=bits,
                block_size=size,
                symmetric=recipe.symmetric,
                method=recipe.method,
                importance=None if seen is None else np.asarray(seen.second_moment, np.float32),
            ),
        )

    shape = (columns, blocks, size * bits // 8)
    values = editor.lazy(f"{name}.values", lambda: result().values, ir.DataType.UINT8, shape)
    scale = editor.lazy(f"{name}.scale", lambda: as_scale(result().scale, kind), kind, (columns, blocks))
    inputs: list[ir.Value | None] = [target.data, values, scale]
    if not recipe.symmetric:  # without one, the middle is the zero point
        zero_shape = (columns, -(-blocks * bits // 8))
        inputs.append(editor.lazy(f"{name}.zero", lambda: result().zero, ir.DataType.UINT8, zero_shape))
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": size}
    if recipe.int8_compute:
        attributes["accuracy_level"] = _INT8_COMPUTE
    return editor.before(
        target.node,
        "MatMulNBits",
        inputs,
        [f"{name}.product"],
        [kind],
        domain=DOMAIN,
        like=target.node.outputs[0],
        **attributes,
    )[0]
