"""``livemoments verify``: every file re-hashed, every graph loaded and run once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from livemoments.bundle import Bundle
from livemoments.cli.bundles import bundle_bytes, open_checked, stages_of
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, provider_option, result_options, threads_option
from livemoments.cli.output import human_bytes, human_seconds, plural, stdout_is_ours, write_json
from livemoments.errors import CheckFailedError, EngineError
from livemoments.manifest import Graph
from livemoments.progress import Progress
from livemoments.types import Size, Stage

if TYPE_CHECKING:
    from livemoments.coreml.comparison import DeviceReport
    from livemoments.runtime.backends.base import Backend, Engine


class GraphCheck(msgspec.Struct, frozen=True):
    """One graph that was loaded: how long it took, and its first run's time (``None``: not run)."""

    stage: str
    size: str
    load_s: float
    run_s: float | None


@click.command("verify", short_help="Check a bundle's files and run its graphs.")
@click.argument("bundle", type=PATH)
@click.option(
    "--level",
    type=click.Choice(["files", "load", "run"]),
    default="run",
    show_default=True,
    help="files: sizes and SHA-256 only. load: also load every graph. run: also run each once.",
)
@click.option(
    "--compute-unit",
    type=click.Choice(["gpu", "ane", "all", "cpu-only"]),
    help="On a Mac, of bundles of Core ML packages: run every graph there and in the interpreter, on the same inputs, "
    "and compare. Prints what to send back.",
)
@provider_option
@threads_option
@result_options
def command(
    bundle: Path,
    level: str,
    compute_unit: str | None,
    provider: str,
    threads: int | None,
    as_json: bool,
    progress: Progress,
) -> None:
    """Check that a bundle is whole and runs on this machine.

    Every file is read and its SHA-256 compared with the manifest; every graph is loaded, one at a time, and run once
    on random inputs (seeded, one tile), whose outputs must be finite and not constant. Whether the results are right
    is not checked here: 'livemoments validate' compares them with the reference. A file or graph that fails is named;
    the exit code is then 2.

    With --compute-unit, a Mac's own answers are held against the interpreter's, which computes what the packages say;
    the exit code is 1 where one is further off than its stage's limit. Do this first on any Mac.

    With --json: {"bundle", "files", "bytes", "level", "provider", "graphs": [{"stage", "size", "load_s", "run_s"}]};
    with --compute-unit the report on the device in the place of the last two, as `device`.

    \b
    Examples:
      livemoments verify bundle
      livemoments verify bundle --level files
      livemoments verify packages --compute-unit gpu
    """
    if compute_unit is not None and (level != "run" or provider != "cpu"):
        raise click.UsageError("--compute-unit runs every graph there: leave --level and --provider out")
    if compute_unit is not None:
        with stdout_is_ours(), needs_extra("the interpreter", "coreml"):
            from livemoments.coreml.comparison import compare_with_interpreter

            report = compare_with_interpreter(open_checked(bundle, progress), compute_unit, progress=progress)
        show_device(report, as_json)
        return
    with stdout_is_ours():
        opened = open_checked(bundle, progress)
        graphs = [] if level == "files" else check_graphs(opened, provider, threads, level == "run", progress)
    count, total = len(opened.manifest.files), bundle_bytes(opened)
    if as_json:
        document: dict[str, Any] = {"bundle": opened.path, "files": count, "bytes": total, "level": level}
        write_json({**document, "provider": provider, "graphs": graphs})
        return
    click.echo(f"{opened.path}: {plural(count, 'file')}, {human_bytes(total)}, every SHA-256 as in the manifest")
    for graph in graphs:
        ran = "" if graph.run_s is None else f", ran in {human_seconds(graph.run_s)}, outputs finite and alive"
        click.echo(f"  {graph.stage:12} {graph.size:>9}  loaded in {human_seconds(graph.load_s)}{ran}")


def show_device(report: DeviceReport, as_json: bool) -> None:
    """Print what a device of this Mac answers, and what to send back.

    Raises:
        CheckFailedError: an answer is further off than its limit; after the report was printed.
    """
    if as_json:
        write_json({"bundle": report.bundle, "device": report})
    else:
        for graph in report.graphs:
            if graph.rel_l2 is None:
                click.echo(f"  {graph.stage:12} {graph.size:>9}  no answer: {graph.error}")
                continue
            limit = "no limit" if graph.limit is None else f"limit {graph.limit:.0e}"
            placed = ", ".join(f"{count} {device}" for device, count in sorted(graph.placement.items()))
            click.echo(
                f"  {graph.stage:12} {graph.size:>9}  {graph.rel_l2:.1e} from the interpreter ('{graph.output}', "
                f"{limit}), loaded in {human_seconds(graph.load_s)}, ran in {human_seconds(graph.first_s)}, "
                f"then {human_seconds(graph.second_s)}; operators on {placed or 'devices that were not told'}"
            )
        click.echo("please send this back, with the Mac's model and memory (docs/coreml.md):")
        click.echo(msgspec.json.encode(report).decode())
    if failed := [graph.stage for graph in report.graphs if not graph.passed]:
        raise CheckFailedError(
            f"{report.compute_unit} does not answer what the packages say: {', '.join(dict.fromkeys(failed))}",
            fix="use another compute unit, and send the report",
        )


def check_graphs(bundle: Bundle, provider: str, threads: int | None, run: bool, progress: Progress) -> list[GraphCheck]:
    """Load every graph, one at a time, and with ``run`` run it once on random inputs for one tile.

    Raises:
        EngineError: a graph does not load or run, or an output is not finite or constant (dead).
    """
    from livemoments.runtime.options import RestoreOptions

    backend = RestoreOptions(provider=provider, threads=threads).open_backend(bundle)
    graphs = [(Stage(name), graph) for name, entry in stages_of(bundle).items() for graph in entry.graphs]
    checks = []
    with progress.task("Running every graph" if run else "Loading every graph", total=len(graphs)) as task:
        for stage, graph in graphs:
            checks.append(_check_graph(bundle, backend, stage, graph, run))
            task.advance(note=f"{stage} {graph.size}")
    return checks


def _check_graph(bundle: Bundle, backend: Backend, stage: Stage, graph: Graph, run: bool) -> GraphCheck:
    from livemoments.stage_inputs import FREE_SIZE

    size = FREE_SIZE if graph.size == "any" else Size.parse(graph.size)
    started = time.perf_counter()
    with backend.open(bundle, stage, size) as engine:
        loaded = time.perf_counter()
        if run:
            _run_once(engine)
        ended = time.perf_counter()
    return GraphCheck(str(stage), graph.size, round(loaded - started, 4), round(ended - loaded, 4) if run else None)


def _run_once(engine: Engine) -> None:
    import numpy as np

    from livemoments.stage_inputs import draw_input

    rng = np.random.default_rng(0)
    outputs = engine.run(engine.cast({spec.name: draw_input(spec, rng) for spec in engine.inputs}))
    for name, output in outputs.items():
        array = np.asarray(output)
        if array.size > 1 and array.min() == array.max():
            raise EngineError(
                f"stage '{engine.stage}', output '{name}': every value is {array.flat[0]}; the output is dead",
                fix="export again, with --precision fp32 if this was fp16",
            )
