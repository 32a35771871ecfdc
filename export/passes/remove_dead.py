"""Remove what no output depends on: nodes, initializers, and (where asked) outputs that nobody reads.

Requires: an onnx_ir model.
Ensures: every node and initializer reaches an output; inputs stay, because they are the stage's contract.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
import onnx_ir.passes.common as common

from livemoments.export.passes.graph import count_initializers
from livemoments.export.passes.report import PassReport

NAME = "remove_dead"


def remove_dead(model: ir.Model, *, keep_outputs: Collection[str] | None = None) -> PassReport:
    """Apply the pass.

    Args:
        model: changed in place.
        keep_outputs: names of the outputs that are read; ``None`` keeps all.
    """
    graph = model.graph
    before, nodes = count_initializers(model), len(graph)
    names = set(graph.initializers)
    dropped = [v for v in graph.outputs if keep_outputs is not None and v.name not in keep_outputs]
    for value in dropped:
        graph.outputs.remove(value)
    common.RemoveUnusedNodesPass()(model)
    gone = names - set(graph.initializers)
    note = f"{nodes - len(graph)} nodes, {len(gone)} initializers, {len(dropped)} outputs"
    changed = bool(dropped or gone or nodes != len(graph))
    return PassReport(NAME, changed, before, count_initializers(model), note)
