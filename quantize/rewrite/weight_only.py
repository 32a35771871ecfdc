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
from livemoments.quantize.rewrite.graph_edit import GraphEditor, LastResult, Target, as_scale
from livemoments.quantize.rewrite.input_ranges import StatsOf
from livemoments.quantize.rewrite.round_weights import BlockWeights, quantize_blocks

DOMAIN = "com.microsoft"
_INT8_COMPUTE = 4
"""``accuracy_level``: the input is quantized to int8 by blocks while the product runs."""
_UINT8 = ir.DataType.UINT8


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
    name, kind, size = target.linear.id.weight, target.float_type, recipe.block_size
    rows, columns = target.linear.in_features, target.linear.out_features
    blocks = -(-rows // size)
    seen = None if stats is None else stats.get(target.linear.id)
    importance = None if seen is None else np.asarray(seen.second_moment, np.float32)
    form = {"bits": bits, "block_size": size}

    def quantize() -> BlockWeights:
        symmetric, method = recipe.symmetric, recipe.method
        return quantize_blocks(target.read_weight(), symmetric=symmetric, method=method, importance=importance, **form)

    def result() -> BlockWeights:
        return memory.of(name, quantize)

    values = editor.lazy(f"{name}.values", lambda: result().values, _UINT8, (columns, blocks, size * bits // 8))
    scale = editor.lazy(f"{name}.scale", lambda: as_scale(result().scale, kind), kind, (columns, blocks))
    inputs = [target.data, values, scale]
    if not recipe.symmetric:  # without one, the middle is the zero point
        shape = (columns, -(-blocks * bits // 8))
        inputs.append(editor.lazy(f"{name}.zero", lambda: result().zero, _UINT8, shape))
    attributes = {"K": rows, "N": columns, **form} | ({"accuracy_level": _INT8_COMPUTE} if recipe.int8_compute else {})
    like = target.node.outputs[0]
    return editor.before(
        target.node, "MatMulNBits", inputs, f"{name}.product", kind, like=like, domain=DOMAIN, **attributes
    )
