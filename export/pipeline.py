"""Export a checkpoint to a bundle: plan, trace, write and check one graph after the other, then the manifest."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livemoments.bundle import Bundle, BundleWriter, hash_file, write_bundle
from livemoments.errors import ResourceError, UsageError
from livemoments.export.opening import open_planner
from livemoments.export.options import ExportOptions
from livemoments.manifest import (
    SCHEMA_VERSION,
    Graph,
    Manifest,
    Source,
    StageEntry,
    StageParity,
)
from livemoments.progress import SILENT, Progress
from livemoments.reference.own_tiles import MIN_TILE_PX, default_overlap, default_tile
from livemoments.store.errors import disk_full, is_full
from livemoments.types import VAE_STAGES, ReferencePolicy, Size, Stage, whole_bundle
from livemoments.version import __version__

if TYPE_CHECKING:
    from livemoments.export.plan import Planner, StageGraph
    from livemoments.export.references import References

_TOOLS = ("torch", "diffusers", "safetensors", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")

_MORE_TOOLS = {"coreml": ("coremltools",), "coreai": ("coreai-core", "coreai-torch", "coreai-opt")}
"""Of a target, besides."""


def export_bundle(
    checkpoint: str | Path,
    output: str | Path,
    options: ExportOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = SILENT,
    **fields: Any,
) -> Bundle:
    """Export a checkpoint; nothing is left behind unless every graph is written and passes its check.

    Args:
        checkpoint: a folder in upstream's layout, or upstream's ``inference_config.yml``.
        output: the bundle's folder.
        options: what to export and how.
        overwrite: replace an older bundle.
        progress: receives the progress.
        fields: in the options' place, the attributes of :class:`livemoments.export.options.ExportOptions`.

    Returns:
        The bundle, opened. Its manifest has the measured parity.

    Raises:
        UsageError: an argument that cannot be used.
        CheckpointError: weights or configuration that do not fit the layout, NaN weights.
        ParityError: a graph is further from the reference than its limit, dead or not finite.
        OutputError: the destination exists or cannot be written.
        ResourceError: memory or disk ran out.
        MissingExtraError: the extra ``export`` is not installed.
    """
    if options is not None and fields:
        raise TypeError("give either ExportOptions or their fields as keywords")
    options = options or ExportOptions(**fields)
    options.check()
    planner = open_planner(checkpoint, options)
    wanted = _wanted(planner, options.stages)
    tiles = options.tiles
    sizes = (default_tile(planner.configs, planner.files.tile),) if tiles is None else tuple(dict.fromkeys(tiles))
    overlap = options.overlap
    if overlap is None:
        own = planner.files.overlap if tiles is None else None
        overlap = own or default_overlap(planner.configs, sizes)
    _check_tiles(planner, sizes, overlap, options.vae_tiles)
    planner.check_files(wanted)
    from livemoments.reference.checkpoint import model_of  # torch, whose absence open_planner explained

    with _resource_errors(Path(output)), write_bundle(output, overwrite=overwrite) as writer:
        source = _source(planner)
        if options.target == "coreml":
            from livemoments.export.coreml.pipeline import export_stages

            entries = export_stages(Path(checkpoint), planner, writer, wanted, sizes, options, source.files, progress)
        elif options.target == "coreai":
            from livemoments.export.coreai.pipeline import COREAI
            from livemoments.export.coreml.pipeline import export_stages

            files = source.files
            entries = export_stages(
                Path(checkpoint), planner, writer, wanted, sizes, options, files, progress, kind=COREAI
            )
        elif options.target == "torch":
            from livemoments.export.torch_stages import export_stages as export_networks

            entries = export_networks(planner, writer, wanted, sizes, options, progress)
        else:
            entries = _export_stages(planner, writer, wanted, sizes, options, progress)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer=f"livemoments-deploy {__version__}",
            target=options.target,
            precision=options.precision,
            source=source,
            model=model_of(planner.configs, planner.prompt, planner.files.flow),
            schedule=planner.schedule,
            tiles=tuple(str(size) for size in sizes),
            overlap=overlap,
            reference_policy=str(ReferencePolicy.parse(options.reference_policy)),
            kv_layout=planner.kv_layout,
            stages=entries,
            toolchain=_toolchain(*_MORE_TOOLS.get(options.target, ())),
            files=writer.hash_files(),
        )
        writer.commit(manifest)
    return Bundle.open(output, verify_hashes=False)


def _wanted(planner: Planner, stages: Sequence[Stage] | None) -> tuple[Stage, ...]:
    """The stages to export, in the order in which a tile passes through them."""
    if planner.files.raft is None and stages is not None and Stage.FLOW in stages:
        raise UsageError(
            f"{planner.files.root} has no RAFT (flow: dis), and so no stage 'flow' to export",
            fix="leave flow out of --stages: OpenCV's DIS takes its place",
        )
    return tuple(stage for stage in whole_bundle(planner.files.flow) if stages is None or stage in stages)


def _check_tiles(planner: Planner, sizes: Sequence[Size], overlap: int, vae_sizes: Sequence[Size]) -> None:
    smallest = min(min(size.height, size.width) for size in sizes)
    if not 0 <= 2 * overlap <= smallest:  # more, and tiles hardly advance
        raise UsageError(f"an overlap of {overlap} px does not fit tiles of {smallest} px", fix="use a smaller overlap")
    configs = planner.configs
    cell = configs.vae.scale * configs.transformer.patch_size
    largest = cell * configs.transformer.pos_embed_max_size
    for size in (*sizes, *vae_sizes):
        for side in (size.height, size.width):
            if side % cell or not MIN_TILE_PX <= side <= largest:
                raise UsageError(
                    f"tiles of {size} are not possible with this checkpoint",
                    fix=f"use multiples of {cell} px from {MIN_TILE_PX} to {largest} px",
                )


@contextlib.contextmanager
def _resource_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise ResourceError(f"out of memory while exporting ({error})", fix="close other programs") from None
    except OSError as error:
        if not is_full(error):
            raise
        raise disk_full(output) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise ResourceError("out of memory while exporting", fix="use --verify sampled or smaller tiles") from None


def _export_stages(
    planner: Planner,
    writer: BundleWriter,
    stages: Sequence[Stage],
    sizes: Sequence[Size],
    options: ExportOptions,
    progress: Progress,
) -> dict[str, StageEntry]:
    from livemoments.export.references import References

    references = References(planner.files, planner.configs, planner.prompt, planner.schedule, planner.kv_layout)
    of_stage = {stage: _sizes(stage, sizes, options) for stage in stages}
    entries: dict[str, StageEntry] = {}
    with progress.task("exporting", total=2 * sum(map(len, of_stage.values()))) as task:
        for stage, own_sizes in of_stage.items():
            folder = writer.folder / str(stage)
            folder.mkdir()
            graphs, written, parameters = [], [], 0
            for plan, elements in _write_graphs(planner, folder, stage, own_sizes, options.target):
                task.advance(note=f"{stage} {plan.size} written")
                parameters = parameters or elements
                graphs.append(_graph_entry(stage, plan))
                written.append(plan)
            parity = []
            for plan, size in zip(written, own_sizes, strict=True):
                measured = _check(references, folder / f"{plan.size}.onnx", plan, size, options)
                parity += [] if measured is None else [measured]
                task.advance(note=f"{stage} {plan.size} checked")
            entries[str(stage)] = StageEntry(
                precision="fp32" if stage == Stage.FLOW else options.precision,
                graphs=tuple(graphs),
                parity=tuple(parity),
                parameters=parameters,
                parameters_before=written[0].parameters_before,
            )
    return entries


def _sizes(stage: Stage, sizes: Sequence[Size], options: ExportOptions) -> Sequence[Size]:
    """Of a stage's graphs; RAFT's one takes every size."""
    if stage in VAE_STAGES:
        return options.vae_sizes(sizes)
    return sizes[:1] if stage is Stage.FLOW else sizes


def _write_graphs(
    planner: Planner, folder: Path, stage: Stage, sizes: Sequence[Size], target: str
) -> Iterator[tuple[StageGraph, int]]:
    """Write a stage's graphs beside one file of weights; yields each graph's plan and its number of parameters."""
    from livemoments.export.passes.graph import count_initializers
    from livemoments.export.to_onnx import WEIGHTS_NAME, WeightsFile, save, trace

    with contextlib.closing(WeightsFile(folder / WEIGHTS_NAME)) as weights:
        for size in sizes:
            plan = planner.graph(stage, size)
            model, _ = trace(plan, fuse=target == "onnx")
            elements = count_initializers(model)
            save(model, folder / f"{plan.size}.onnx", weights)
            yield plan, elements


def _graph_entry(stage: Stage, plan: StageGraph) -> Graph:
    from livemoments.export.to_onnx import WEIGHTS_NAME

    return Graph(
        path=f"{stage}/{plan.size}.onnx",
        size=plan.size,
        weights=(f"{stage}/{WEIGHTS_NAME}",),
        inputs=plan.inputs,
        outputs=plan.outputs,
    )


def _check(
    references: References, path: Path, plan: StageGraph, size: Size, options: ExportOptions
) -> StageParity | None:
    from livemoments.export import gate

    if options.verify == "none":
        return None
    if options.verify == "finite":
        session = gate.open_session(path)
        gate.check_finite_outputs(plan.stage, gate.run(session, gate.random_inputs(plan.inputs), plan.inputs))
        return None
    points = gate.points_to_compare(plan.stage, len(references.schedule.points), options.verify)
    cases = (references.case(plan.stage, size, point) for point in points)
    return gate.check_stage(plan, options.precision, cases, path)


def _source(planner: Planner) -> Source:
    files = {name: hash_file(path) for name, path in planner.files.walk()}
    return Source(name=planner.files.root.resolve().name, files=files)


def _toolchain(*more: str) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in (*_TOOLS, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
