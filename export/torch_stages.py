"""A checkpoint's stages to PyTorch networks: a description for every tile size, one file of weights a stage.

Weights are read, folded and written one tensor at a time, as for the other targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import torch
from torch import nn

from livemoments.bundle import BundleWriter
from livemoments.export import gate
from livemoments.export.options import ExportOptions
from livemoments.export.plan import Planner, StageGraph
from livemoments.export.references import References
from livemoments.export.stages import FlowStage
from livemoments.export.weights import WeightSource
from livemoments.manifest import Graph, StageEntry, StageParity
from livemoments.progress import Progress
from livemoments.pytorch.backend import TorchBackend
from livemoments.pytorch.structure import Motion, Raft, Structure, Transformer, Vae, describe
from livemoments.runtime.backends.base import to_host
from livemoments.store.safetensors_file import write_safetensors
from livemoments.types import Size, Stage

WEIGHTS = "weights.safetensors"


def export_stages(
    planner: Planner,
    writer: BundleWriter,
    stages: Sequence[Stage],
    sizes: Sequence[Size],
    options: ExportOptions,
    progress: Progress,
) -> dict[str, StageEntry]:
    """Write and check every stage.

    Args:
        planner: of the checkpoint.
        writer: of the bundle.
        stages: which ones.
        sizes: the tiles.
        options: of the export.
        progress: receives the progress.

    Raises:
        CheckpointError: keys that do not fit, or NaN weights.
        ParityError: a network, as it is loaded again, is not what the reference computes.
    """
    references = References(planner.files, planner.configs, planner.prompt, planner.schedule, planner.kv_layout)
    backend = TorchBackend("cpu")
    entries = {}
    counts = {stage: 1 if stage is Stage.FLOW else len(sizes) for stage in stages}
    with progress.task("exporting", total=2 * sum(counts.values())) as task:
        for stage in stages:
            folder = writer.folder / str(stage)
            folder.mkdir()
            graphs, parameters, before = _write(planner, folder, stage, sizes[: counts[stage]])
            task.advance(len(graphs), note=f"{stage} written")
            parity = []
            for graph, size in zip(graphs, sizes, strict=False):
                found = _check(references, backend, writer.folder, stage, graph, size, options)
                parity += [] if found is None else [found]
                task.advance(note=f"{stage} {graph.size} checked")
            entries[str(stage)] = StageEntry(
                precision="fp32" if stage is Stage.FLOW else options.precision,
                graphs=tuple(graphs),
                parity=tuple(parity),
                parameters=parameters,
                parameters_before=before,
            )
    return entries


def _write(planner: Planner, folder: Path, stage: Stage, sizes: Sequence[Size]) -> tuple[list[Graph], int, int]:
    """Write one stage; its graphs, its parameters as they are stored for one size, and before folding."""
    graphs, parameters, before = [], 0, 0
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    sources: dict[str, WeightSource] = {}
    for size in sizes:
        plan = planner.graph(stage, size)
        module = plan.module.raft if isinstance(plan.module, FlowStage) else plan.module
        state = module.state_dict()
        stored_as = {name: plan.weight_name(name) for name in state}
        for name, tensor in state.items():
            tensors[stored_as[name]] = (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            sources[stored_as[name]] = plan.weights
        structure = Structure(
            dtype="float32" if stage is Stage.FLOW else str(planner.dtype).removeprefix("torch."),
            stored_as={name: stored for name, stored in stored_as.items() if name != stored},
            **_part(planner, plan, module),  # type: ignore[arg-type]  # one of its fields
        )
        path = f"{stage}/{plan.size}.json"
        (folder.parent / path).write_bytes(msgspec.json.encode(structure))
        weights = (f"{stage}/{WEIGHTS}",)
        graphs.append(Graph(path=path, size=plan.size, weights=weights, inputs=plan.inputs, outputs=plan.outputs))
        parameters = parameters or sum(tensor.numel() for tensor in state.values())
        before = plan.parameters_before

    def pieces(name: str) -> Iterable[bytes]:
        dtype: torch.dtype = getattr(torch, tensors[name][0])
        yield sources[name].get(name, dtype).contiguous().numpy().tobytes()

    write_safetensors(folder / WEIGHTS, tensors, pieces)
    return graphs, parameters, before


def _part(planner: Planner, plan: StageGraph, module: nn.Module) -> dict[str, Transformer | Motion | Vae | Raft]:
    """What stands for a plan's module in its description, by its field's name."""
    if plan.stage in (Stage.VAE_ENCODER, Stage.VAE_DECODER):
        return {"vae": Vae(config=planner.configs.vae.raw)}
    if plan.stage is Stage.FLOW:
        return {"raft": Raft(iterations=plan.repeats + 1)}  # the plan's module has two, to be traced
    return dict(describe(module))


def _check(
    references: References,
    backend: TorchBackend,
    folder: Path,
    stage: Stage,
    graph: Graph,
    size: Size,
    options: ExportOptions,
) -> StageParity | None:
    """A network, loaded again, against the reference; ``finite``: on made-up inputs, without one."""
    if options.verify == "none":
        return None
    with backend.open_files(folder, stage, graph) as engine:

        def answer(inputs: gate.Arrays) -> gate.Arrays:
            return {name: to_host(array) for name, array in engine.run(engine.cast(inputs)).items()}

        if options.verify == "finite":
            gate.check_finite_outputs(stage, answer(gate.random_inputs(graph.inputs)))
            return None
        points = gate.points_to_compare(stage, len(references.schedule.points), options.verify)
        cases = (references.case(stage, size, point) for point in points)
        precision = "fp32" if stage is Stage.FLOW else options.precision
        return gate.check_answers(stage, graph.size, precision, cases, answer)
