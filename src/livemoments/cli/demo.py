"""``livemoments demo``: the whole way on embedded photographs."""

from __future__ import annotations

from pathlib import Path

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import FILE, PATH, result_options
from livemoments.cli.output import stdout_is_ours
from livemoments.cli.reports import finish
from livemoments.progress import Progress


@click.command("demo", short_help="Restore an embedded photograph and validate, in a minute.")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=PATH,
    default="demo-output",
    show_default=True,
    help="Folder for the restored photo, the report and the before / after / truth picture.",
)
@click.option("--photo", metavar="IMAGE", type=FILE, help="Your own key photo instead of the embedded one.")
@click.option("--frame", metavar="IMAGE", type=FILE, help="The video frame to restore; goes with --photo.")
@click.option(
    "--full",
    is_flag=True,
    help="Export the engines and record the PyTorch reference here, restore the whole photograph, check and time "
    "everything. Takes minutes, and the extra 'export'.",
)
@result_options
def command(
    output: Path, photo: Path | None, frame: Path | None, full: bool, as_json: bool, progress: Progress
) -> None:
    """Restore a photo, then measure parity, quality and cost, and write a report.

    Embedded photographs with a simulated hand-held clip (motion, blur, downscaling, compression) are used unless
    --photo and --frame name your own. The weights are those of the small checkpoint that comes with the package:
    trained, on other photographs than these, but far from the published model's size and quality. Its engines come
    with the package too, and what the PyTorch reference computes on two tiles; --full makes both anew. What has been
    found is said on stderr as it goes, and how long it will take here on the first line.

    Needs the extra 'demo'. With --json: the report as one document. Exit code 1 if a parity limit is missed.

    \b
    Examples:
      livemoments demo -o demo-output
      livemoments demo --photo IMG_0042.jpg --frame frame.png
      livemoments demo --full
    """
    if frame is not None and photo is None:
        raise click.UsageError("--frame needs --photo: the sharp photo taken beside the video")
    with stdout_is_ours(), needs_extra("the demo", "export" if full else "demo"):
        from livemoments.demo import run_demo

        report = run_demo(output, photo=photo, frame=frame, full=full, progress=progress)
    finish(report, as_json=as_json)
