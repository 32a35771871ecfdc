"""Give a graph's free axes fixed lengths: engines of fixed shapes need no profiles and are the fastest.

Requires: free axes of inputs and outputs that carry the manifest's names (``batch``, ``height``, ``width``).
Ensures: no axis of a named length is free, in inputs, outputs and what lies between; axes of other names are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from livemoments.export.passes.graph import count_initializers
from livemoments.export.passes.report import PassReport

NAME = "freeze_axes"


def freeze_axes(model: ir.Model, lengths: Mapping[str, int]) -> PassReport:
    """Apply the pass.

    Args:
        model: changed in place.
        lengths: of the axes, by name.
    """
    count = count_initializers(model)
    graph = model.graph
    inner = (value for node in graph.all_nodes() for value in node.outputs)
    frozen = sum(_freeze(value, lengths) for value in _each_once((*graph.inputs, *graph.outputs, *inner)))
    text = ", ".join(f"{name} = {length}" for name, length in lengths.items())
    return PassReport(NAME, frozen > 0, count, count, f"{frozen} values got {text}")


def _each_once(values: Iterable[ir.Value]) -> list[ir.Value]:
    return list({id(value): value for value in values}.values())


def _freeze(value: ir.Value, lengths: Mapping[str, int]) -> bool:
    if value.shape is None:
        return False
    axes = [lengths.get(axis.value or "", axis) if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape]
    if axes == list(value.shape):
        return False
    value.shape = ir.Shape(axes)
    return True
