"""Repeat the iteration between two marks, so that a recurrent network is traced twice and not twenty times.

Requires: a graph with two ``livemoments::IterationEnd`` nodes of equal outputs, the second depending on the first.
Ensures: what lies between them appears ``repeats`` times, each fed with the one before; no mark is left. The result is
the graph that tracing all iterations would give: values that do not depend on the first mark are shared.
"""

from __future__ import annotations

import onnx_ir as ir

from livemoments.export.marks import MARK_DOMAIN, MARK_OP
from livemoments.export.passes.graph import count_initializers
from livemoments.export.passes.report import PassReport

NAME = "unroll_iterations"


def unroll_iterations(model: ir.Model, repeats: int) -> PassReport:
    """Apply the pass.

    Args:
        model: changed in place.
        repeats: how often the marked iteration runs, at least once.

    Raises:
        ValueError: there are marks, but not two that fit.
    """
    before = count_initializers(model)
    marks = [node for node in model.graph if node.op_type == MARK_OP and node.domain == MARK_DOMAIN]
    if not marks:
        return PassReport(NAME, False, before, before, "no iterations are marked")
    if len(marks) != 2 or len(marks[0].outputs) != len(marks[1].outputs) or repeats < 1:
        raise ValueError(f"{len(marks)} marks and {repeats} repeats: two marks of equal outputs are needed")
    first, last = marks
    body = _body(model.graph, first, last)
    carried = list(last.inputs)
    for number in range(1, repeats):
        carried = _repeat(model.graph, body, first, last, carried, f"repeat_{number}")
    for old, new in zip((*last.outputs, *first.outputs), (*carried, *first.inputs), strict=True):
        if new is None:
            raise ValueError("a mark has an empty input")
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    model.graph.remove([last, first], safe=True)
    model.graph.opset_imports.pop(MARK_DOMAIN, None)
    note = f"{len(body)} nodes stand {repeats} times"
    return PassReport(NAME, True, before, count_initializers(model), note)


def _body(graph: ir.Graph, first: ir.Node, last: ir.Node) -> list[ir.Node]:
    """The nodes on a path from the first mark to the last, in order."""
    reached = set(first.outputs)
    forward = []
    for node in graph:
        if node is last:
            break
        if node is not first and any(value in reached for value in node.inputs):
            forward.append(node)
            reached.update(node.outputs)
    needed = {value for value in last.inputs if value is not None}
    body = []
    for node in reversed(forward):
        if any(value in needed for value in node.outputs):
            body.append(node)
            needed.update(value for value in node.inputs if value is not None)
    return body[::-1]


def _repeat(
    graph: ir.Graph,
    body: list[ir.Node],
    first: ir.Node,
    last: ir.Node,
    carried: list[ir.Value | None],
    label: str,
) -> list[ir.Value | None]:
    """Copy the body before the last mark, fed with ``carried``; what it hands on."""
    values: dict[ir.Value | None, ir.Value | None] = dict(zip(first.outputs, carried, strict=True))
    for node in body:
        inputs = [values.get(value, value) for value in node.inputs]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{node.outputs[0].name}.{label}",
        )
        copy.metadata_props.update(node.metadata_props)
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.type, new.shape = f"{old.name}.{label}", old.type, old.shape
            values[old] = new
        graph.insert_before(last, copy)
    return [values.get(value, value) for value in last.inputs]
