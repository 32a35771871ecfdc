"""``livemoments check``: what a target cannot take of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.bundle import Bundle
from livemoments.cli.engines import LIBRARIES, by_module, sm_option
from livemoments.cli.exits import EXIT_CHECK_FAILED
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, STAGES, result_options
from livemoments.cli.output import plural, printable, stdout_is_ours, write_json
from livemoments.engine_files import TITLES
from livemoments.progress import Progress
from livemoments.types import Stage

if TYPE_CHECKING:
    from livemoments.export.tensorrt.check import GraphFinding, TargetCheck

_MODULES_SHOWN = 3


@click.command("check", short_help="Say what a target cannot take of a bundle.")
@click.argument("bundle", type=PATH)
@click.option("--target", type=click.Choice(LIBRARIES), required=True, help="What engines are to be built with.")
@sm_option
@click.option("--stages", type=STAGES, help="Check only these stages.  [default: all]")
@result_options
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    target: str,
    sm: tuple[str, ...],
    stages: tuple[Stage, ...] | None,
    as_json: bool,
    progress: Progress,
) -> None:
    """Say what TARGET cannot take of BUNDLE, by PyTorch module, before anything is built.

    Every graph is looked at: operators, types, ranges of quantized layers, what the GPUs of --sm can compute. Where the
    library is installed (TensorRT: on a machine with a GPU) its own parser reads every graph as well; the answer says
    whether it did. Nothing is built: a bundle that passed can still be refused while it is. What torch-tensorrt would
    make of the checkpoint is not looked at.

    Needs the extra 'rtx' or 'tensorrt'; 'export' is enough to look at the graphs.

    Exit code 1 if something cannot be taken. With --json: {"target", "version", "parsed", "sm", "passed", "graphs":
    [{"stage", "graph", "size", "layers", "refusals": [{"module", "operator", "reason"}]}]}.

    \b
    Example:
      livemoments check bundle-fp8 --target rtx --sm 8.9,12.0
    """
    with stdout_is_ours(), needs_extra("checking graphs", target):
        from livemoments.export.tensorrt.check import check_target

        opened = Bundle.open(bundle, verify_hashes=False, engines=False)
        found = check_target(opened, target, sm=sm, stages=stages, progress=progress)  # type: ignore[arg-type]
    if as_json:
        write_json(_document(found))
    else:
        click.echo("\n".join(_lines(found)))
    if not found.passed:
        context.exit(EXIT_CHECK_FAILED)


def _document(found: TargetCheck) -> dict[str, Any]:
    graphs = [
        {
            "stage": graph.stage.value,
            "graph": graph.graph,
            "size": graph.size,
            "layers": graph.layers,
            "refusals": [{"module": r.module, "operator": r.operator, "reason": r.reason} for r in graph.refusals],
        }
        for graph in found.graphs
    ]
    return {
        "target": found.library,
        "version": found.version,
        "parsed": found.parsed,
        "sm": found.sm,
        "passed": found.passed,
        "graphs": graphs,
    }


def _lines(found: TargetCheck) -> list[str]:
    title = TITLES[found.library]
    served = f" for SM {', '.join(found.sm)}" if found.sm else ""
    if found.parsed:
        lines = [f"{title} {found.version}{served}: its parser read the graphs"]
    else:
        lines = [f"{title}{served}: only the graphs were looked at, no parser of the library read them here"]
    for graph in found.graphs:
        lines += _graph_lines(graph)
    refused = sum(bool(graph.refusals) for graph in found.graphs)
    lines.append(f"{plural(refused, 'graph')} refused" if refused else "every graph can be taken")
    return lines


def _graph_lines(graph: GraphFinding) -> list[str]:
    layers = "" if graph.layers is None else f", {graph.layers} layers"
    lines = [f"  {graph.stage:12} {graph.size:>10}  {'refused' if graph.refusals else 'ok'}{layers}"]
    for (operator, reason), modules in by_module(graph.refusals).items():
        shown = ", ".join(modules[:_MODULES_SHOWN])
        more = f" and {len(modules) - _MODULES_SHOWN} more" if len(modules) > _MODULES_SHOWN else ""
        lines.append(printable(f"    {operator} in {shown}{more}: {reason}"))
    return lines
