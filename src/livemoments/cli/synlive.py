"""``livemoments synlive``: test sets in the manner of the paper's SynLive260, from one's own videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, BadValue, overwrite_option, result_options
from livemoments.cli.output import plural, stdout_is_ours, write_json
from livemoments.cli.reports import finish
from livemoments.errors import UsageError
from livemoments.progress import Progress
from livemoments.types import Size

_DEGRADATIONS = ("live-photo", "real-esrgan", "codec")
_FULL = "full"


class CropType(click.ParamType):
    """``WIDTHxHEIGHT``, one number for a square, or ``full``."""

    name = "crop"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size | str:
        """Parse the text of a size, or ``full``."""
        if isinstance(value, Size) or value == _FULL:
            return value
        try:
            return Size.parse(value)
        except UsageError as error:
            fix = "write WIDTHxHEIGHT, e.g. 1024x1024, or full"
            raise BadValue(error.message, fix=fix, param=param, ctx=ctx) from None


@click.group("synlive", short_help="Make a test set with ground truth from your own videos.")
def command() -> None:
    """Make and check test sets in the manner of SynLive260.

    SynLive260, on which the paper measured against ground truth, is not public. A set of that kind can be made from
    high-quality videos of your own: two frames a little apart, one the key photo, the other degraded as a phone's
    video is, its full quality kept as the truth.
    """


@command.command("build", short_help="Make a set from videos or photographs.")
@click.option(
    "--videos",
    metavar="DIR",
    type=PATH,
    help="High-quality videos (4K, SDR), and folders of consecutive frames, at any depth.",
)
@click.option(
    "--photos",
    metavar="DIR",
    type=PATH,
    help="Photographs instead of videos: a hand-held camera's motion is simulated, nothing moves by itself.",
)
@click.option("-o", "--output", metavar="DIR", type=PATH, required=True, help="The set's folder.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Pairs.  [default: one per video or photograph]")
@click.option(
    "--gap",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="FRAMES",
    help="Between the two frames of a pair.",
)
@click.option(
    "--crop",
    type=CropType(),
    default="1024x1024",
    show_default=True,
    help="Part of the frames to take, or full for whole frames.",
)
@click.option(
    "--scale",
    type=click.IntRange(min=1, max=8),
    default=2,
    show_default=True,
    metavar="N",
    help="How much smaller the degraded frames are.",
)
@click.option(
    "--degradation",
    type=click.Choice(_DEGRADATIONS),
    default=_DEGRADATIONS[0],
    show_default=True,
    help="live-photo: mild, as a phone's video. real-esrgan: the published ranges, harsh. codec: only smaller, then "
    "through HEVC at a phone's bit rate.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the places, crops, parameters and noise.",
)
@click.option("--skip-unusable", is_flag=True, help="Leave out files that cannot be used instead of refusing all.")
@overwrite_option
@result_options
def build(
    videos: Path | None,
    photos: Path | None,
    output: Path,
    crop: Size | str,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> None:
    """Make a set with ground truth: lr/ (degraded frame), ref/ (key photo), ref_lr/ (degraded key frame), gt/ (truth).

    Pairs are spread evenly over every video. Still scenes, cuts and empty pictures are left out. manifest.json says
    how each pair was made, with the SHA-256 of every image: the same command on the same machine gives the same
    bytes. A build that was interrupted or killed goes on when it is started again.

    Videos need the extra 'synlive'; photographs and folders of frames do not. With --json: {"folder", "pairs",
    "resumed", "skipped", "unusable"}.

    \b
    Examples:
      livemoments synlive build --videos clips -o my-set
      livemoments synlive build --videos clips -o my-set --count 260 --degradation codec
      livemoments synlive build --photos holiday -o my-set --crop 768x768
    """
    if (videos is None) == (photos is None):
        raise click.UsageError("name either --videos DIR or --photos DIR")
    with stdout_is_ours(), needs_extra("reading and coding videos", "synlive"):
        from livemoments.validate.synlive.build import build_set

        folder = videos or photos
        assert folder is not None
        built = build_set(
            folder,
            output,
            photographs=photos is not None,
            crop=crop if isinstance(crop, Size) else None,
            progress=progress,
            **options,
        )
    manifest = built.manifest
    if as_json:
        document = {"folder": built.folder, "pairs": len(manifest.pairs), "resumed": built.resumed}
        write_json({**document, "skipped": len(manifest.skipped), "unusable": manifest.unusable})
        return
    sources = len({pair.source for pair in manifest.pairs})
    what = "photograph" if manifest.settings.photographs else "video"
    click.echo(f"wrote {built.folder}: {plural(len(manifest.pairs), 'pair')} from {plural(sources, what)}")
    if built.resumed:
        click.echo(f"  {plural(built.resumed, 'pair')} of an earlier, unfinished build")
    if manifest.skipped:
        click.echo(f"  {plural(len(manifest.skipped), 'place')} left out: still, cut, empty or damaged (manifest.json)")
    for name, reason in manifest.unusable.items():
        click.echo(f"  not used: {name} {reason}")


@command.command("check", short_help="Compare a set with its manifest.")
@click.argument("folder", metavar="DIR", type=PATH)
@result_options
def check(folder: Path, as_json: bool, progress: Progress) -> None:
    """Compare every image of a set with its manifest, and decode it.

    Missing, changed and added files are named. Exit code 1 if there is any. With --json: {"folder", "passed",
    "pairs", "sha256", "problems"}.

    \b
    Example:
      livemoments synlive check my-set
    """
    with stdout_is_ours():
        from livemoments.validate.synlive.check import check_set

        found = check_set(folder, progress=progress)
    finish(found, as_json=as_json)
