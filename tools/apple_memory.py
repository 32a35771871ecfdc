"""What Core ML packages of the published size take on Apple's devices, by prediction: the table of docs/coreml.md.

    python tools/apple_memory.py            # prints it
    python tools/apple_memory.py --write    # puts it into the document
    python tools/apple_memory.py --check    # exit code 1 if the document has another one

Method. The networks' graphs without weights (benchmarks/graphs/, see tools/economics.py) give the activations, keys and
values and images by the planner's model of an accelerator that shares the host's memory. Both transformers weigh what
their packages were measured to (benchmarks/results/coreml-full-size.json); a recipe that was not measured weighs its
bits for each linear of a block and what the graph says for the rest. One tile at a time.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from document_table import DocumentTable, markdown
from economics import FRAME, PHOTO, ROOT, Graphs

from livemoments.bundle import Bundle
from livemoments.profiles.planner.graph import read_graph
from livemoments.profiles.planner.packed import is_linear
from livemoments.profiles.planner.plan import BATCHES, Costs, Plan, PlanRequest, make_plans
from livemoments.profiles.read import load_profile
from livemoments.types import TRANSFORMER_STAGES, Size, Stage

TABLE = DocumentTable(ROOT / "docs" / "coreml.md", "tools/apple_memory.py")
RECORD = ROOT / "benchmarks" / "results" / "coreml-full-size.json"
TILES_PX = (512, 768, 1024)
BITS = {"fp16": 16.0, "int8-weights-coreml": 8.0, "palette6-coreml": 6.0, "int4-weights-coreml": 4.0 + 16 / 32}
"""Bits of a linear's weight by recipe, with a float16 scale for 32 in the last; a scale a channel, and a palette, are
less than a thousandth."""
_GIB = 2**30
LIMITS_BYTES = {
    "Mac, 8 GB": 8 * _GIB * 2 // 3,
    "Mac, 16 GB": 16 * _GIB * 2 // 3,
    "iPhone, 8 GB": 3 * 10**9,
    "with the entitlement": 6 * 10**9,
}
"""What a process may take; docs/coreml.md has the sources."""
PROFILE = "m2-16gb"
"""Whose policy and budget of keys and values are planned with."""


@dataclass(frozen=True)
class Weights:
    """Bytes of both transformers' packages by stage, and whether they were measured."""

    of: dict[Stage, float]
    measured: bool


def measured_weights(recipe: str) -> Weights | None:
    """What the record has: the sum of each network's packages."""
    packages = msgspec.json.decode(RECORD.read_bytes())["packages"]
    sizes = {str(stage): [row for name, row in packages.items() if name.split()[0] == stage] for stage in Stage}
    if not all(recipe in row for stage in TRANSFORMER_STAGES for row in sizes[stage]):
        return None
    of = {stage: sum(row[recipe]["package_mb"] for row in sizes[stage]) * 1e6 for stage in TRANSFORMER_STAGES}
    return Weights(of, measured=True)


def derived_weights(bundle: Bundle, tile: Size, recipe: str) -> Weights:
    """What the graphs and the recipe's bits say."""
    of = {}
    for stage in TRANSFORMER_STAGES:
        graph = read_graph(bundle.path / bundle.graph(stage, tile).path, {"batch": 1})
        linears = {node.inputs[1] for node in graph.nodes if node.op in ("MatMul", "Gemm")}
        elements = sum(math.prod(graph.tensors[name].shape) for name in linears if is_linear(name, graph))
        of[stage] = graph.weight_bytes + elements * (BITS[recipe] - BITS["fp16"]) / 8
    return Weights(of, measured=False)


@dataclass(frozen=True)
class Row:
    """One recipe with one tile size: the bundle's bytes and the plans that take least, with RAFT and with DIS."""

    recipe: str
    bundle_bytes: float
    measured: bool
    exact: Plan
    with_dis: Plan

    @property
    def cells(self) -> tuple[str, ...]:
        """The table's."""
        return (
            f"`{self.recipe}`",
            f"{self.exact.tiles} of {self.exact.tile}",
            f"{self.bundle_bytes / 1e9:.1f}{'' if self.measured else ' (derived)'}",
            f"{self.exact.peak_bytes / 1e9:.1f}",
            f"{self.with_dis.peak_bytes / 1e9:.1f}",
            *(self.fits(limit) for limit in LIMITS_BYTES.values()),
        )

    def fits(self, limit_bytes: int) -> str:
        """Whether a device's memory is enough, and with which flow."""
        if self.exact.peak_bytes <= limit_bytes:
            return "yes"
        return "DIS" if self.with_dis.peak_bytes <= limit_bytes else "no"


def make_rows() -> list[Row]:
    """Every recipe with every tile size."""
    with tempfile.TemporaryDirectory(prefix="livemoments-graphs-") as name:
        graphs = Graphs(Path(name))
        rows = [row for side in TILES_PX for row in _rows(graphs, Size(side, side))]
    return sorted(rows, key=lambda row: list(BITS).index(row.recipe))


def _rows(graphs: Graphs, tile: Size) -> Iterator[Row]:
    profile, plain = load_profile(PROFILE), graphs.costs("fp16", tile)
    counted = [plain.of(stage, tile, batch) for stage in Stage for batch in BATCHES]
    for recipe in BITS:
        weights = measured_weights(recipe) or derived_weights(plain.bundle, tile, recipe)
        known = [
            msgspec.structs.replace(cost, weight_bytes=int(weights.of.get(Stage(cost.stage), cost.weight_bytes)))
            for cost in counted
        ]
        costs = Costs(plain.bundle, known=[*known, plain.of(Stage.FLOW, FRAME)])
        plans = make_plans(plain.bundle, profile, PlanRequest(PHOTO, frame=FRAME, tile=tile), costs=costs).plans
        least = {
            flow: min(
                (plan for plan in plans if (plan.batch, plan.flow) == (1, flow)), key=lambda plan: plan.peak_bytes
            )
            for flow in ("engine", "dis")
        }
        total = sum(cost.weight_bytes for cost in known if cost.batch == 1)
        yield Row(recipe, total, weights.measured, least["engine"], least["dis"])


def make_table() -> str:
    """The table as Markdown.

    Raises:
        ValueError: a plan is another one than the document's text says.
    """
    rows = make_rows()
    ways = {(plan.residency, plan.kv_store) for row in rows for plan in (row.exact, row.with_dis)}
    if ways != {("phases", "disk")}:
        raise ValueError(f"the text says that all plans are phases with keys and values on disk; they are {ways}")
    head = ("recipe", "tiles", "bundle, GB", "peak, RAFT, GB", "peak, DIS, GB")
    limits = (f"{device} ({limit / 1e9:.1f})" for device, limit in LIMITS_BYTES.items())
    return markdown((*head, *limits), *(row.cells for row in rows))


if __name__ == "__main__":
    raise SystemExit(TABLE.main(__doc__, make_table))
