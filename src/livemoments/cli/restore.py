"""``livemoments restore``: a video frame to the quality of its key photo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.options import BYTES, FILE, PATH, result_options
from livemoments.cli.output import human_seconds, plural, stdout_is_ours, write_json
from livemoments.cli.profile_option import profile_option
from livemoments.cli.restore_options import read_restore_options, restore_options
from livemoments.errors import OutputError
from livemoments.live_photo import LivePhoto
from livemoments.progress import Progress

if TYPE_CHECKING:
    from livemoments.runtime.restore import RestoreResult


@click.command("restore", short_help="Restore a video frame with its key photo.")
@click.argument("bundle", type=PATH)
@click.option("--frame", metavar="IMAGE", type=FILE, required=True, help="The video frame to restore.")
@click.option("--photo", metavar="IMAGE", type=FILE, required=True, help="The key photo: sharp, of the same scene.")
@click.option(
    "--photo-frame",
    metavar="IMAGE",
    type=FILE,
    help="The video frame at the photo's instant.  [default: derived from the photo, and the metadata says so]",
)
@click.option(
    "-o",
    "--output",
    metavar="IMAGE",
    type=FILE,
    required=True,
    help="The result; the suffix decides the format (png, jpg, tif, webp). An existing file is replaced.",
)
@restore_options(default_seed="0")
@click.option(
    "--compat",
    type=click.Choice(["upstream"]),
    help="Reproduce upstream's tiling, 8-bit colour fix and grey top row and left column.",
)
@click.option(
    "--tile-plan",
    type=click.Choice(["balanced", "upstream"]),
    help="balanced: the fewest tiles that cover the photo. upstream: padding to whole strides.  "
    "[default: balanced; upstream with --compat]",
)
@click.option(
    "--residency",
    type=click.Choice(["all", "phases"]),
    default="all",
    show_default=True,
    help="phases: only the engines of the phase at work are loaded (flow and encoder; ReferenceNet; RestorationNet; "
    "decoder), whatever the policy. The same picture, less memory, more loading.",
)
@click.option(
    "--kv-store",
    type=click.Choice(["host", "disk"]),
    default="host",
    show_default=True,
    help="Where phase-split keeps keys and values.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["native", "float16", "int8", "fp8"]),
    default="native",
    show_default=True,
    help="How stored keys and values are kept. float16 halves those of an fp32 bundle; int8 and fp8 take little more "
    "than a byte a number, and cost exactness.",
)
@click.option(
    "--kv-budget",
    "kv_budget_bytes",
    type=BYTES,
    default="4GiB",
    show_default=True,
    help="How much of them phase-split may hold at once; decides how many tiles share a phase.",
)
@click.option(
    "--kv-cache",
    metavar="DIR",
    type=PATH,
    help="Keep keys and values in this folder, found again by content: a second frame of the same photo is cheaper.",
)
@click.option(
    "--bit-depth", type=click.Choice(["8", "16"]), help="Bits per channel of the result.  [default: the photo's]"
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    metavar="1-100",
    help="Quality of JPEG and WebP.",
)
@profile_option
@result_options
def command(
    bundle: Path,
    frame: Path,
    photo: Path,
    photo_frame: Path | None,
    output: Path,
    bit_depth: str | None,
    progress: Progress,
    as_json: bool,
    **options: Any,
) -> None:
    """Restore a video frame to the quality of its key photo, with the engines of BUNDLE.

    Frame and photo must show the same scene in the same aspect ratio; the result has the photo's size, colour profile
    and metadata. How it was made (seed, steps, policy, flow, tiles, the bundle's hash) is written into the file. The
    same seed gives the same picture whatever the batch size. Runs without PyTorch.

    With --json: {"output", "width", "height", "seconds", "metadata", "timings": {"stages": {NAME: {"seconds",
    "count"}}, "tile_seconds"}}.

    \b
    Examples:
      livemoments restore bundle --frame frame.png --photo photo.jpg -o restored.png
      livemoments restore bundle --frame frame.png --photo photo.jpg -o small-memory.png \\
          --reference phase-split --kv-store disk --flow dis
    """
    for name, source in (("--frame", frame), ("--photo", photo), ("--photo-frame", photo_frame)):
        if source is not None and source.exists() and output.exists() and output.samefile(source):
            raise OutputError(output, f"is also {name}; it would be overwritten", fix="choose another -o")
    started = time.perf_counter()
    with stdout_is_ours():
        from livemoments.heap import give_back_large_blocks
        from livemoments.runtime.restore import restore

        give_back_large_blocks()
        chosen = read_restore_options(options, bit_depth=None if bit_depth is None else int(bit_depth))
        live = LivePhoto(frame, photo, photo_frame)
        result = restore(open_checked(bundle, progress), live, chosen, output=output, progress=progress)
    seconds = time.perf_counter() - started
    if as_json:
        write_json(_document(result, output, seconds))
    else:
        click.echo(_summary(result, output, seconds))


def _document(result: RestoreResult, output: Path, seconds: float) -> dict[str, Any]:
    height, width = result.image.shape[:2]
    timings = {
        "stages": {
            name: {"seconds": round(timing.seconds, 4), "count": timing.count}
            for name, timing in result.timings.stages.items()
        },
        "tile_seconds": [round(tile_s, 4) for tile_s in result.timings.tile_seconds],
    }
    return {
        "output": output,
        "width": width,
        "height": height,
        "seconds": round(seconds, 3),
        "metadata": result.metadata,
        "timings": timings,
    }


def _summary(result: RestoreResult, output: Path, seconds: float) -> str:
    height, width = result.image.shape[:2]
    made = result.metadata
    lines = [
        f"wrote {output}: {width}x{height} in {human_seconds(seconds)}",
        f"  {plural(made['tiles'], 'tile')} of {made['tile']}, {plural(made['steps'], 'step')}, "
        f"reference {made['reference_policy']}, flow by {made['flow']}, photo frame {made['photo_frame']}",
    ]
    if lost := made.get("not_carried_over"):
        lines.append(f"  not carried over from the photo: {', '.join(lost)}")
    return "\n".join(lines)
