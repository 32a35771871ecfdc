"""``livemoments profile``: many ways of restoring, measured and compared; one of them as a device profile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.exits import EXIT_CHECK_FAILED
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, provider_option, result_options, threads_option
from livemoments.cli.output import stdout_is_ours, write_json, write_table
from livemoments.progress import Progress


@click.command("profile", short_help="Measure many ways of restoring; the best for a budget as a device profile.")
@click.argument("bundles", nargs=-1, required=True, type=PATH)
@click.option("--dataset", metavar="DIR", type=PATH, required=True, help="Images to measure on, as for 'validate'.")
@click.option("-o", "--output", metavar="SWEEP", type=PATH, required=True, help="Folder of the report.")
@click.option(
    "--sweep",
    "sweeps",
    multiple=True,
    metavar="NAME=VALUE,…",
    help="An option and its values: steps, reference, kv-dtype, tile, flow, batch or residency. Several are combined.",
)
@click.option(
    "--exact",
    metavar="BUNDLE",
    type=PATH,
    help="The fp32 bundle that every point is held against.  [default: the first of BUNDLES that is one]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most this many images, spread evenly.")
@click.option(
    "--image", metavar="NAME", help="The image of the data set that is timed and shown.  [default: the first]"
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Fresh processes a point, for latency and memory.",
)
@click.option(
    "--pick",
    metavar="EXPRESSION",
    help='Write the best point as a profile, SWEEP/picked.toml: "memory<8GB, quality_drop<0.2dB", and perhaps '
    '"min NAME" or "max NAME".  [default: the lowest latency]',
)
@click.option(
    "--metrics",
    default="default",
    show_default=True,
    metavar="NAME,…",
    help="Quality metrics, as for 'validate' (docs/quality.md).",
)
@click.option("--iqa-weights", metavar="DIR", type=PATH, help="Where the deep metrics' weights lie.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Who restores.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="For ray.  [default: one per GPU or machine]")
@click.option("--ray-address", metavar="ADDRESS", help="Address of a running cluster.  [default: one on this machine]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the noise.")
@click.option("--pad-small", is_flag=True, help="Extend photos that are smaller than a tile.")
@click.option("--fresh", is_flag=True, help="Measure everything anew, whatever SWEEP holds.")
@provider_option
@threads_option
@result_options
def command(
    bundles: tuple[Path, ...],
    dataset: Path,
    output: Path,
    sweeps: tuple[str, ...],
    exact: Path | None,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> None:
    """Measure every one of BUNDLES with every combination of values, and say which points no other beats.

    A point's latency and peak memory are those of fresh processes of 'livemoments restore'; its quality is that of the
    data set's images, against their ground truth where they have one, and against the exact fp32 result always. Points
    that 'livemoments restore' would refuse are named before any work. One that fails on the way is reported, and the
    others go on.

    SWEEP becomes a folder with sweep.json and sweep.html (one page, no network: axes to choose, the photo and the
    command at each point). It keeps every result by content: a killed sweep goes on, and another sweep or another
    --pick measures only what is new.

    Exit code 1 if no point could be measured, or none is what --pick asks for. Needs the extra 'validate'.
    With --json: the report as one document, schema livemoments/sweep/1.

    \b
    Examples:
      livemoments profile bundle bundle-int8 --dataset photos -o sweep \\
          --sweep steps=6,4,3,2 --sweep reference=per-step,every-2,frozen
      livemoments profile bundle bundle-int8 --dataset photos -o sweep --pick "memory<8GB, quality_drop<0.2dB"
      livemoments restore bundle-int8 --profile sweep/picked.toml --frame frame.png --photo photo.jpg -o restored.png
    """
    with stdout_is_ours(), needs_extra("sweeping", "validate"):
        from livemoments.profiles.sweeps.axes import parse_axis
        from livemoments.profiles.sweeps.folder import PAGE, PICKED
        from livemoments.profiles.sweeps.run import SweepOptions, sweep
        from livemoments.profiles.sweeps.text import front_table, is_short, sweep_lines
        from livemoments.runtime.options import RestoreOptions
        from livemoments.validate.harness.image_metrics import StandardMetrics
        from livemoments.validate.harness.options import RunOptions
        from livemoments.validate.quality.registry import select

        axes = [parse_axis(text) for text in sweeps]
        names = tuple(spec.name for spec in select(options["metrics"]))
        base = RestoreOptions(**{name: options[name] for name in ("seed", "pad_small", "provider", "threads")})
        run = RunOptions(**{name: options[name] for name in ("engine", "workers", "ray_address", "fresh")})
        report = sweep(
            [open_checked(path, progress) for path in bundles],
            dataset,
            axes,
            output,
            SweepOptions(
                base=base,
                exact=None if exact is None else open_checked(exact, progress),
                limit=options["limit"],
                metrics=StandardMetrics(names, weights=options["iqa_weights"]),
                run=run,
                runs=options["runs"],
                photo=options["image"],
                wish=options["pick"],
                command=" ".join(["livemoments", *sys.argv[1:]]),
            ),
            progress=progress,
        )
    if as_json:
        write_json(report)
    else:
        write_table(front_table(report))
        for line in sweep_lines(report):
            click.echo(line)
        click.echo(f"wrote {output / PAGE}")
        if report.pick is not None and report.pick.point is not None:
            click.echo(f"wrote {output / PICKED}")
    if is_short(report):
        click.get_current_context().exit(EXIT_CHECK_FAILED)
