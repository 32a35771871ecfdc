"""``livemoments inspect``: what is in a bundle, or in a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from livemoments.bundle import Bundle
from livemoments.cli.bundles import (
    DIS_BY_DESIGN,
    bundle_bytes,
    bundle_document,
    stage_bytes,
    stages_of,
    worst_parity,
)
from livemoments.cli.inspect_checkpoint import inspect_checkpoint, looks_like_checkpoint
from livemoments.cli.options import PATH, json_option
from livemoments.cli.output import human_bytes, human_count, printable, stdout_is_ours, write_json, write_table
from livemoments.engine_files import TITLES

if TYPE_CHECKING:
    from rich.table import Table


@click.command("inspect", short_help="Show what is in a bundle or a checkpoint.")
@click.argument("place", metavar="BUNDLE|CHECKPOINT", type=PATH)
@click.option("--io", "show_io", is_flag=True, help="Of a bundle: also list every graph's inputs and outputs.")
@json_option
def command(place: Path, show_io: bool, as_json: bool) -> None:
    """Show what is in a bundle, or whether a checkpoint could be exported.

    Of a bundle: stages, sizes, schedule, and the parity measured at export. Reads the manifest and compares the files'
    sizes, not their hashes, so it takes no time even for a bundle of many gigabytes; 'livemoments verify' reads
    everything.

    Of a checkpoint (a folder in upstream's layout, or an inference_config.yml): every part found, missing or
    misshapen, its type and size, the prompt's T, and the command that mends it. Reads headers only, whatever the size;
    exit code 2 when it could not be exported. Needs the extra 'reference'.

    With --json: of a bundle {"bundle", "bytes", "manifest"}, where manifest is manifest.json as it is; of a checkpoint
    {"checkpoint", "config", "exportable", "flow", "text_tokens", "tile", "overlap", "bytes", "parts"}, each of the
    parts {"name", "state", "path", "bytes", "dtypes", "tensors", "parameters", "note", "problem", "fix"}.

    \b
    Examples:
      livemoments inspect bundle --io
      livemoments inspect checkpoint
    """
    if looks_like_checkpoint(place):
        inspect_checkpoint(place, as_json=as_json)
        return
    with stdout_is_ours():
        opened = Bundle.open(place, verify_hashes=False)
    if as_json:
        write_json(bundle_document(opened))
        return
    for key, value in _facts(opened).items():
        click.echo(f"{key:11} {printable(value)}")
    write_table(_stage_table(opened))
    if any(graph.engines for entry in opened.manifest.stages.values() for graph in entry.graphs):
        write_table(_engine_table(opened))
    if show_io:
        write_table(_io_table(opened))


def _facts(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    schedule = manifest.schedule
    sigmas = ", ".join(f"{schedule.points[i].sigma:.4f}" for i in schedule.plans[str(schedule.default_steps)])
    model = manifest.model
    recipe = f", recipe {manifest.recipe}" if manifest.recipe else ""
    tools = [f"{name} {version}" for name, version in manifest.toolchain.items()]
    counts = ", ".join(sorted(schedule.plans, key=int))
    facts = {
        "bundle": f"{bundle.path} ({human_bytes(bundle_bytes(bundle))}, {len(manifest.files)} files)",
        "target": f"{manifest.target}, {manifest.precision}{recipe}",
        "source": f"{manifest.source.name} ({len(manifest.source.files)} files, hashes in the manifest)",
        "made by": ", ".join([manifest.producer, *tools]),
        "model": f"{model.num_blocks} blocks, {model.num_heads} heads x {model.head_dim}, T = {model.text_tokens}",
        "tiles": f"{', '.join(manifest.tiles)}, overlap {manifest.overlap} px",
        "schedule": f"step counts {counts}; by default {schedule.default_steps}: sigma {sigmas}",
        "reference": f"{manifest.reference_policy}, keys and values {manifest.kv_layout}",
    }
    if model.flow == "dis":
        facts["flow"] = DIS_BY_DESIGN
    if manifest.gpu_architecture:
        facts["GPU"] = manifest.gpu_architecture
    return facts


def _stage_table(bundle: Bundle) -> Table:
    from rich.table import Table

    table = Table("stage", "precision", "tiles", title="Stages", title_justify="left")
    for heading in ("parameters", "of the checkpoint's", "files", "relative L2 error", "limit"):
        table.add_column(heading, justify="right")
    for name, entry in stages_of(bundle).items():
        share = f"{100 * entry.parameters / max(1, entry.parameters_before):.0f} %"
        worst = worst_parity(entry)
        table.add_row(
            name,
            entry.precision,
            ", ".join(graph.size for graph in entry.graphs),
            human_count(entry.parameters),
            f"{share} of {human_count(entry.parameters_before)}" if entry.parameters_before else "-",
            human_bytes(stage_bytes(bundle, entry)),
            "not compared" if worst is None else f"{worst.rel_l2:.1e} ({worst.output}, {worst.size})",
            "-" if worst is None else f"{worst.limit:.0e}",
        )
    return table


def _engine_table(bundle: Bundle) -> Table:
    from rich.table import Table

    table = Table("stage", "tiles", "built by", "via", "SM", "options", "driver", title="Engines", title_justify="left")
    table.add_column("layers", justify="right")
    table.add_column("file", justify="right")
    for name, entry in stages_of(bundle).items():
        for engine in (engine for graph in entry.graphs for engine in graph.engines):
            table.add_row(
                name,
                f"{engine.size} x {engine.batch}",
                f"{TITLES[engine.library]} {engine.version}",
                engine.via,
                ", ".join(engine.sm),
                ", ".join(engine.flags) or "-",
                engine.driver or "-",
                f"{engine.layers:,}" if engine.layers else "-",
                human_bytes(bundle.manifest.files[engine.path].bytes),
            )
    return table


def _io_table(bundle: Bundle) -> Table:
    from rich.table import Table

    table = Table("graph", "", "tensor", "dtype", "shape", title="Inputs and outputs", title_justify="left")
    for entry in stages_of(bundle).values():
        for graph in entry.graphs:
            for kind, specs in (("in", graph.inputs), ("out", graph.outputs)):
                for spec in specs:
                    shape = "(" + ", ".join(str(axis) for axis in spec.shape) + ")"
                    table.add_row(graph.path, kind, spec.name, spec.dtype, shape)
            table.add_section()
    return table
