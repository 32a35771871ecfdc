"""``livemoments record``: what the PyTorch reference computes, for machines that cannot run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import FILE, PATH, POLICY, SIZE, BadValue, overwrite_option, result_options
from livemoments.cli.output import human_bytes, plural, stdout_is_ours, write_json
from livemoments.progress import Progress
from livemoments.types import ReferencePolicy, Size

if TYPE_CHECKING:
    from livemoments.validate.recording.store import Recording


class _NumbersType(click.ParamType):
    """Whole numbers from 0 on with commas between them, or ``all`` (``None``)."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...] | None:
        if isinstance(value, tuple):
            return value
        if value == "all":
            return None
        if not re.fullmatch(r"\s*\d{1,4}\s*(,\s*\d{1,4}\s*)*", value):
            fix = "write whole numbers from 0 on with commas between them, e.g. 0,3, or all"
            raise BadValue(f"'{value}' is not a list of numbers", fix=fix, param=param, ctx=ctx)
        return tuple(sorted({int(part) for part in value.split(",")}))


_NUMBERS = _NumbersType()


@click.command("record", short_help="Record what the PyTorch reference computes, to compare with elsewhere.")
@click.argument("checkpoint", type=PATH)
@click.option(
    "--dataset",
    metavar="DIR",
    type=PATH,
    help="Photos: frames in DIR/lr, photos of the same names in DIR/ref, and perhaps frames at the photos' instants in "
    "DIR/ref_lr and ground truth in DIR/gt.",
)
@click.option("--frame", metavar="IMAGE", type=FILE, help="Instead of --dataset a single photo: the video frame.")
@click.option("--photo", metavar="IMAGE", type=FILE, help="The key photo beside it.")
@click.option(
    "--photo-frame", metavar="IMAGE", type=FILE, help="The video frame at the photo's instant, if there is one."
)
@click.option("-o", "--output", metavar="RECORDING", type=PATH, required=True, help="The recording's folder.")
@click.option(
    "--tile",
    type=SIZE,
    help="Tile size in pixels, as the bundle will have it.  [default: the checkpoint's own, as export takes]",
)
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    metavar="PIXELS",
    help="Least overlap of neighbouring tiles in pixels.  [default: the checkpoint's own, or in proportion]",
)
@click.option("--steps", type=click.IntRange(min=1), default=6, show_default=True, metavar="N", help="Sampling steps.")
@click.option(
    "--reference",
    "policy",
    type=POLICY,
    default="per-step",
    show_default=True,
    help="When ReferenceNet runs: per-step, phase-split, every-K, frozen.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed of the noise."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="What tensors are stored as; they are computed in float32. float16 takes half the space and rounds by up to "
    "5e-4, which hides smaller errors.",
)
@click.option(
    "--detail",
    type=click.Choice(["stages", "keys-values", "blocks", "modules"]),
    default="stages",
    show_default=True,
    help="stages: images, flow, latents and velocities of every tile. keys-values: also ReferenceNet's keys and "
    "values, and the motion bias. blocks: also what leaves every transformer block. modules: also what leaves every "
    "layer. Each level is several times larger than the one before.",
)
@click.option(
    "--detail-images",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="How many photos are recorded with the detail asked for; of the others only the stages are kept.",
)
@click.option(
    "--detail-tiles",
    type=_NUMBERS,
    default="0",
    show_default=True,
    help="Which of their tiles are recorded with that detail: numbers from 0 on, or all.",
)
@click.option("--detail-steps", type=_NUMBERS, default="all", show_default=True, help="Which sampling steps are.")
@click.option(
    "--blocks",
    type=_NUMBERS,
    default="all",
    show_default=True,
    help="With --detail modules: only the layers in these transformer blocks.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="At most N photos of the set, spread evenly.  [default: all]",
)
@click.option(
    "--device", default="cpu", show_default=True, metavar="NAME", help="Where the reference runs: cpu, cuda, cuda:1, …"
)
@overwrite_option
@result_options
def command(
    checkpoint: Path,
    dataset: Path | None,
    frame: Path | None,
    photo: Path | None,
    photo_frame: Path | None,
    output: Path,
    tile: Size | None,
    policy: ReferencePolicy,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> None:
    """Run the PyTorch reference on photos once, and keep what it computes.

    RECORDING becomes a folder with the photos, the restored results, and the tensors by name, hashed. 'livemoments
    validate BUNDLE --recording RECORDING' compares a bundle with it on machines that have no PyTorch and could not run
    the reference. Conditions are those of 'livemoments restore' with a bundle of this tile size and overlap: the same
    tiles, the same noise.

    Killed or interrupted and started again with the same arguments, it goes on behind the last finished photo; until
    then everything is in a hidden folder beside RECORDING, .NAME.unfinished.

    Needs the extra 'reference', and memory for the reference in float32. With --json: {"recording",
    "digest", "detail", "dtype", "bytes", "images": [{"name", "size", "tiles", "detail", "tensors"}]}.

    \b
    Examples:
      livemoments record checkpoint --dataset photos -o recording --dtype float16 --device cuda
      livemoments record checkpoint --frame frame.png --photo photo.jpg -o recording --detail blocks
    """
    if (dataset is None) == (frame is None and photo is None and photo_frame is None):
        raise click.UsageError("name either --dataset, or --frame and --photo")
    if dataset is None and (frame is None or photo is None):
        raise click.UsageError("--frame and --photo go together: name both")
    with stdout_is_ours(), needs_extra("recording", "reference"):
        from livemoments.live_photo import LivePhoto
        from livemoments.validate.recording.pipeline import record

        if frame is not None and photo is not None:
            photos: Path | LivePhoto[Path] = LivePhoto(frame, photo, photo_frame, name=photo.stem)
        else:
            assert dataset is not None
            photos = dataset
        recording = record(checkpoint, photos, output, tile=tile, policy=policy, progress=progress, **options)
    if as_json:
        write_json(_document(recording))
    else:
        click.echo(_summary(recording))


def _document(recording: Recording) -> dict[str, Any]:
    meta = recording.meta
    images = [
        {
            "name": name,
            "size": entry.size,
            "tiles": len(entry.tiles),
            "detail": entry.detail,
            "tensors": len(recording.names(name)),
        }
        for name, entry in meta.images.items()
    ]
    return {
        "recording": str(recording.path),
        "digest": meta.digest,
        "detail": meta.detail,
        "dtype": meta.dtype,
        "bytes": _bytes(recording),
        "images": images,
    }


def _bytes(recording: Recording) -> int:
    return sum(entry.bytes for entry in recording.meta.files.values())


def _summary(recording: Recording) -> str:
    meta = recording.meta
    tiles = sum(len(entry.tiles) for entry in meta.images.values())
    lines = [
        f"wrote {recording.path}: {plural(len(meta.images), 'photo')}, {plural(tiles, 'tile')} of "
        f"{meta.settings.tile}, {meta.settings.steps} steps, {meta.dtype}, {human_bytes(_bytes(recording))}"
    ]
    if meta.detail != "stages":
        finer = [name for name, entry in meta.images.items() if entry.detail == meta.detail]
        lines.append(f"  {meta.detail} of {plural(len(finer), 'photo')}: {', '.join(finer[:5])}")
    return "\n".join(lines)
