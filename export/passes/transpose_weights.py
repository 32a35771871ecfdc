"""Store transposed what a MatMul reads transposed, so that no engine transposes (and copies) weights when it loads.

Requires: weights are initializers with a ``const_value`` (lazy ones stay lazy).
Ensures: no Transpose of a 2-D initializer is left where all its readers transpose it; names stay, shapes are the
transposed ones, and the value's metadata says so under ``livemoments.transposed``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from livemoments.export.passes.graph import count_initializers, permutation
from livemoments.export.passes.report import PassReport

NAME = "transpose_weights"
TRANSPOSED = "livemoments.transposed"


def transpose_weights(model: ir.Model) -> PassReport:
    """Apply the pass; ``model`` is changed in place."""
    before = count_initializers(model)
    count = 0
    for value in model.graph.initializers.values():
        readers = [usage.node for usage in value.uses()]
        if not readers or value.is_graph_output() or any(permutation(node) != (1, 0) for node in readers):
            continue
        stored = value.const_value
        if stored is None:
            continue
        shape = ir.Shape(tuple(reversed(stored.shape.numpy())))
        value.const_value = _transposed(stored, shape)
        value.shape = shape
        value.metadata_props[TRANSPOSED] = "1"
        for node in readers:
            ir.convenience.replace_all_uses_with(node.outputs[0], value, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        count += 1
    note = f"{count} weights stored transposed"
    return PassReport(NAME, count > 0, before, count_initializers(model), note)


def _transposed(stored: ir.TensorProtocol, shape: ir.Shape) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(stored.numpy().T), name=stored.name)

    return ir.LazyTensor(read, dtype=stored.dtype, shape=shape, name=stored.name)
