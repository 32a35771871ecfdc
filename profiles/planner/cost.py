"""What one run of a stage costs, counted from its graph: operations, bytes moved, memory. Data, JSON-able."""

from __future__ import annotations

import msgspec

from livemoments.bundle import Bundle
from livemoments.profiles.planner.flops import other_ops, product_flops, unit_of
from livemoments.profiles.planner.graph import CostGraph, block_parts, read_graph
from livemoments.profiles.planner.liveness import Lifetimes, lifetimes, moved_bytes
from livemoments.profiles.planner.ort_cpu import as_ort_runs_it
from livemoments.profiles.planner.packed import RECIPES, as_packed
from livemoments.types import TRANSFORMER_STAGES, Size, Stage


class BlockCost(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one block of a transformer, which is loaded for it alone.

    Attributes:
        weight_bytes: of its weights, as stored.
        nodes: operators.
        live_bytes: activations and outputs at their peak, each tensor given back after its last reader.
        first_run_bytes: what onnxruntime's CPU provider holds at its peak.
        held_bytes: of what earlier blocks gave, for this one, a later one or the caller.
    """

    weight_bytes: int
    nodes: int
    live_bytes: int
    first_run_bytes: int
    held_bytes: int


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one stage over a batch.

    Attributes:
        stage: its name.
        size: of the images, ``WxH``.
        batch: tiles at once.
        parameters: numbers in its files.
        weight_bytes: of these, as stored.
        conv_weight_bytes: those that convolutions read.
        nodes: operators.
        product_flops: of matrix products, convolutions and attention by what they are computed in (``fp32``, ``fp16``,
            ``int8``), a multiply-add as two.
        other_ops: of everything else.
        moved_bytes: read and written by all operators, weights included.
        input_bytes: of the graph's inputs.
        output_bytes: of the graph's outputs.
        live_bytes: activations and outputs at their peak, each tensor given back after its last reader.
        first_run_bytes: what onnxruntime's CPU provider holds at its peak when it runs for the first time.
        block_bytes: of the block in which it lays all activations from the second run on.
        workspace_bytes: the most that a kernel needs besides.
        blocks: of a transformer, run one after the other.
    """

    stage: str
    size: str
    batch: int
    parameters: int
    weight_bytes: int
    conv_weight_bytes: int
    nodes: int
    product_flops: dict[str, int]
    other_ops: int
    moved_bytes: int
    input_bytes: int
    output_bytes: int
    live_bytes: int
    first_run_bytes: int
    block_bytes: int
    workspace_bytes: int
    blocks: tuple[BlockCost, ...] = ()

    @property
    def flops(self) -> int:
        """All products."""
        return sum(self.product_flops.values())

    @property
    def second_run_bytes(self) -> int:
        """What onnxruntime's CPU provider holds at its peak from the second run on."""
        return self.block_bytes + self.workspace_bytes + self.output_bytes


def cost_of_graph(graph: CostGraph, stage: Stage, size: Size, batch: int) -> StageCost:
    """Count one graph."""
    products: dict[str, int] = {}
    for node in graph.nodes:
        if flops := product_flops(node, graph):
            unit = unit_of(node, graph)
            products[unit] = products.get(unit, 0) + flops
    convolved = {name for node in graph.nodes if node.op == "Conv" for name in node.inputs[1:] if name in graph.weights}
    rewritten = as_ort_runs_it(graph)
    plain: Lifetimes = lifetimes(graph)
    found: Lifetimes = lifetimes(rewritten)
    return StageCost(
        stage=str(stage),
        size=str(size),
        batch=batch,
        parameters=graph.parameters,
        weight_bytes=graph.weight_bytes,
        conv_weight_bytes=sum(graph.tensors[name].bytes for name in convolved),
        nodes=len(graph.nodes),
        product_flops=products,
        other_ops=sum(other_ops(node, graph) for node in graph.nodes),
        moved_bytes=sum(moved_bytes(node, graph) for node in graph.nodes),
        input_bytes=sum(graph.tensors[name].bytes for name in graph.inputs),
        output_bytes=found.output_bytes,
        live_bytes=plain.live_bytes,
        first_run_bytes=found.peak_bytes,
        block_bytes=found.block_bytes,
        workspace_bytes=found.workspace_bytes,
        blocks=_blocks(graph) if stage in TRANSFORMER_STAGES else (),
    )


def _blocks(graph: CostGraph) -> tuple[BlockCost, ...]:
    parts = block_parts(graph)
    last = {name: number for number, part in enumerate(parts) for name in part.inputs}
    last |= dict.fromkeys(graph.outputs, len(parts))
    costs, held = [], set[str]()
    for number, part in enumerate(parts):
        found = lifetimes(as_ort_runs_it(part))
        costs.append(
            BlockCost(
                weight_bytes=part.weight_bytes,
                nodes=len(part.nodes),
                live_bytes=lifetimes(part).live_bytes,
                first_run_bytes=found.peak_bytes,
                held_bytes=sum(graph.tensors[name].bytes for name in held),
            )
        )
        held = {name for name in (*held, *part.outputs) if last.get(name, -1) > number}
    return tuple(costs)


def cost_of_stage(bundle: Bundle, stage: Stage, size: Size, batch: int = 1, *, recipe: str | None = None) -> StageCost:
    """Count the stage's graph in a bundle; no weight is read.

    Args:
        bundle: opened.
        stage: which one.
        size: of the images in pixels; flow's need not be a tile's.
        batch: tiles at once.
        recipe: count the transformers as it would leave them; one of :mod:`livemoments.profiles.planner.packed`'s.

    Raises:
        BundleError: there is no graph of this size, or it cannot be understood.
    """
    path = bundle.path / bundle.graph(stage, size).path
    graph = read_graph(path, {"batch": batch, "height": size.height, "width": size.width})
    if recipe is not None and stage in TRANSFORMER_STAGES:
        graph = as_packed(graph, RECIPES[recipe])
    return cost_of_graph(graph, stage, size, batch)
