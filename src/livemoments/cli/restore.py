"""``livemoments restore``: a video frame to the quality of its key photo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.options import BYTES, FILE, PATH, result_options
from livemoments.cli.output import stdout_is_ours, write_json
from livemoments.cli.profile_option import profile_option
from livemoments.cli.restore_live import LiveRequest, MomentChoice, restore_live
from livemoments.cli.restore_options import read_restore_options, restore_options
from livemoments.cli.results import result_document, result_summary
from livemoments.errors import OutputError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.progress import Progress


@click.command("restore", short_help="Restore a video frame with its key photo.")
@click.argument("bundle", type=PATH, required=False)
@click.option("--frame", metavar="IMAGE|N", type=FILE, help="The video frame to restore; with --live its number.")
@click.option("--photo", metavar="IMAGE", type=FILE, help="The key photo: sharp, of the same scene.")
@click.option(
    "--photo-frame",
    metavar="IMAGE",
    type=FILE,
    help="The video frame at the photo's instant.  [default: derived from the photo, and the metadata says so]",
)
@click.option(
    "--live",
    metavar="IMAGE",
    type=PATH,
    help="A Live Photo or Motion Photo: photo, frames and the photo's instant are read from it.",
)
@click.option("--at", "times", metavar="TIME", multiple=True, help="With --live: the moment, e.g. 1.2s. Repeatable.")
@click.option("--best", is_flag=True, help="With --live: the sharpest moment.")
@click.option("--video", metavar="VIDEO", type=FILE, help="With --live: the video, where it is not found by itself.")
@click.option("--force", is_flag=True, help="With --live: take photo and video that seem not to belong together.")
@click.option(
    "--write-live",
    is_flag=True,
    help="With --live: write a Live Photo again, with the phone's own video: an Apple pair, or a Motion Photo.",
)
@click.option(
    "-o",
    "--output",
    metavar="IMAGE",
    type=FILE,
    help="The result; the suffix decides the format (png, jpg, tif, webp, heic). An existing file is replaced.  "
    "[default with --live: the photo's name and the moment, here]",
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
    type=click.Choice(["all", "phases", "mapped", "streamed"]),
    default="all",
    show_default=True,
    help="phases: only the engines of the phase at work are loaded (flow and encoder; ReferenceNet; RestorationNet; "
    "decoder), whatever the policy. The same picture, less memory, more loading. mapped: so, and the weights of both "
    "networks stay in their files (CPU). streamed: so, and a block of theirs at a time (the extra 'plan').",
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
    "--kv-cache-budget",
    "kv_cache_budget_bytes",
    type=BYTES,
    default="64GiB",
    show_default=True,
    help="What that folder may hold; the least recently used go first.",
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
    bundle: Path | None,
    frame: Path | None,
    photo: Path | None,
    photo_frame: Path | None,
    live: Path | None,
    output: Path | None,
    bit_depth: str | None,
    progress: Progress,
    as_json: bool,
    **options: Any,
) -> None:
    """Restore a video frame to the quality of its key photo, with the engines of BUNDLE.

    Frame and photo must show the same scene in the same aspect ratio; the result has the photo's size, colour profile
    and metadata. How it was made (seed, steps, policy, flow, tiles, the bundle's hash) is written into the file. The
    same seed gives the same picture whatever the batch size. Runs without PyTorch.

    With --live the images come from a Live Photo (the extra 'livephoto'; 'livemoments frames' lists its moments): the
    clip's frame at the photo's instant is the photo frame, and the photo is cropped to what the video covers. Several
    --at share the photo's keys and values. Without BUNDLE the small network that comes with the package restores.

    With --json: {"output", "width", "height", "seconds", "metadata", "timings": {"stages": {NAME: {"seconds",
    "count"}}, "tile_seconds"}}, and with --kv-cache "kv_cache": {"hits", "misses", "dropped"}. With --live: {"live":
    {"photo", "video", "kind", "key_frame", "notes"}, "moments": [the same and "frame", "time_s", "notes"]}.

    \b
    Examples:
      livemoments restore bundle --frame frame.png --photo photo.jpg -o restored.png
      livemoments restore bundle --frame frame.png --photo photo.jpg -o small-memory.png \\
          --reference phase-split --kv-store disk --flow dis
      livemoments restore --live IMG_0001.HEIC --at 1.2s
    """
    with_live = {name: options.pop(name) for name in ("times", "best", "video", "force", "write_live")}
    if live is not None:
        if photo is not None or photo_frame is not None:
            raise UsageError("--live brings its own photo and frames", fix="leave out --photo and --photo-frame")
        choice = MomentChoice(with_live.pop("times"), frame, with_live.pop("best"))
        request = LiveRequest(live, choice, bundle, output=output, **with_live)
        restore_live(request, options, bit_depth, as_json=as_json, progress=progress)
        return
    if any(with_live.values()):
        what = "--at, --best, --video, --force and --write-live go with --live"
        raise UsageError(what, fix="name the Live Photo with --live")
    if bundle is None or frame is None or photo is None or output is None:
        needed = {"BUNDLE": bundle, "--frame": frame, "--photo": photo, "-o": output}
        missing = [name for name, value in needed.items() if value is None]
        raise click.UsageError(f"Missing {', '.join(missing)}; or restore a Live Photo with --live.")
    for name, source in (("--frame", frame), ("--photo", photo), ("--photo-frame", photo_frame)):
        if source is not None and source.exists() and output.exists() and output.samefile(source):
            raise OutputError(output, f"is also {name}; it would be overwritten", fix="choose another -o")
    started = time.perf_counter()
    with stdout_is_ours():
        from livemoments.heap import give_back_large_blocks
        from livemoments.runtime.restore import restore

        give_back_large_blocks()
        chosen = read_restore_options(options, bit_depth=None if bit_depth is None else int(bit_depth))
        images = LivePhoto(frame, photo, photo_frame)
        result = restore(open_checked(bundle, progress), images, chosen, output=output, progress=progress)
    seconds = time.perf_counter() - started
    if as_json:
        write_json(result_document(result, output, seconds))
    else:
        click.echo(result_summary(result, output, seconds))
