"""``livemoments frames``: the moments of a Live Photo, to choose one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import FILE, PATH, result_options
from livemoments.cli.output import stdout_is_ours, write_json, write_table
from livemoments.progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from livemoments.runtime.live_photo.clip import LiveClip
    from livemoments.runtime.live_photo.placement import Placement
    from livemoments.runtime.live_photo.scores import FrameScore


@click.command("frames", short_help="List the moments of a Live Photo.")
@click.argument("image", type=PATH)
@click.option("--video", metavar="VIDEO", type=FILE, help="The video, where it is not found by itself.")
@click.option("--force", is_flag=True, help="Take photo and video although they do not seem to belong together.")
@click.option(
    "-o",
    "--output",
    metavar="HTML",
    type=FILE,
    help="Write a page for a browser: the film strip, the key photo, the command for each frame. Offline.",
)
@click.option("--best", "only_best", is_flag=True, help="List the sharpest frame only.")
@result_options
def command(
    image: Path,
    video: Path | None,
    force: bool,
    output: Path | None,
    only_best: bool,
    as_json: bool,
    progress: Progress,
) -> None:
    """List the frames of a Live Photo's video.

    IMAGE is an Apple Live Photo (the photo or the video of a pair), an Android Motion Photo, or a photo beside a video
    of the same name. For each frame: its time, how sharp it is (1: the sharpest of the clip), how far the picture moved
    since the frame before, and how far it is from the frame at the photo's instant (in video pixels, on average).

    Needs the extra 'livephoto'. With --json: {"photo", "video", "kind", "key_frame", "best", "notes", "frames":
    [{"index", "time_s", "sharpness", "motion_px", "distance_px", "from_key_s", "is_key"}]}.

    \b
    Examples:
      livemoments frames IMG_0001.HEIC
      livemoments frames PXL_2024.MP.jpg -o moments.html
    """
    with stdout_is_ours(), needs_extra("reading Live Photos", "livephoto"):
        from livemoments.runtime.live_photo.clip import LiveClip
        from livemoments.runtime.live_photo.opened import open_live_photo
        from livemoments.runtime.live_photo.page import shown_frames, thumbnail
        from livemoments.runtime.live_photo.placement import place
        from livemoments.runtime.live_photo.scores import best_frame, score_frames
        from livemoments.store.files import check_file

        if output is not None:
            check_file(output)
        live = open_live_photo(image, video=video, force=force)
        clip = LiveClip(live)
        with progress.task("Laying the video over the photo"):
            placement = place(clip, force=force)
        thumbnails: dict[int, str] = {}
        shown = shown_frames(len(clip.times_s))

        def keep(index: int, pixels: np.ndarray) -> None:
            if index in shown:
                thumbnails[index] = thumbnail(pixels, clip.profile)

        scores = score_frames(clip, placement.key_index, keep=keep if output is not None else None, progress=progress)
        best = best_frame(scores)
        notes = (*live.notes, *clip.notes, *placement.notes)
        if output is not None:
            _write_page(output, image, video, force, clip, placement, scores, best, thumbnails, notes)
    listed = (best,) if only_best else scores
    if as_json:
        write_json(
            {
                "photo": live.path,
                "video": live.video.path,
                "kind": live.kind,
                "key_frame": placement.key_index,
                "best": best.index,
                "notes": notes,
                "frames": [score.to_json() for score in listed],
            }
        )
        return
    _print_table(listed, best)
    click.echo(f"{live.path.name}: {live.kind}, {len(scores)} frames of {clip.size}, key frame {placement.key_index}")
    for note in notes:
        click.echo(f"  {note}")
    if output is not None:
        click.echo(f"wrote {output}")
    else:
        click.echo(f"  {_restore_command(image, video, force, best)}")


def _restore_command(image: Path, video: Path | None, force: bool, score: FrameScore) -> str:
    parts = ["livemoments", "restore", "--live", str(image), "--at", f"{score.time_s:.3f}s"]
    parts += [] if video is None else ["--video", str(video)]
    parts += ["--force"] * force
    return shlex.join(parts)


def _print_table(scores: tuple[FrameScore, ...], best: FrameScore) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("frame", "time s", "sharpness", "motion px", "from key px", ""):
        table.add_column(column, justify="left" if not column else "right")
    for score in scores:
        marks = ", ".join(word for word, holds in (("key", score.is_key), ("best", score.index == best.index)) if holds)
        values: list[Any] = [score.index, f"{score.time_s:.3f}", f"{score.sharpness:.2f}"]
        values += [f"{score.motion_px:.1f}", f"{score.distance_px:.1f}", marks]
        table.add_row(*(str(value) for value in values))
    write_table(table)


def _write_page(
    output: Path,
    image: Path,
    video: Path | None,
    force: bool,
    clip: LiveClip,
    placement: Placement,
    scores: tuple[FrameScore, ...],
    best: FrameScore,
    thumbnails: dict[int, str],
    notes: tuple[str, ...],
) -> None:
    from livemoments.runtime.live_photo.page import photo_thumbnail, render
    from livemoments.store.files import write_file

    live = clip.live
    facts = (
        f"{live.kind}; the video was found by: {live.found_by}",
        f"photo {live.photo.size}, video {clip.size}, {len(scores)} frames up to {clip.times_s[-1]:.2f} s",
        f"the photo's instant by {placement.key_from}: frame {placement.key_index}",
        *notes,
    )
    page = render(
        title=live.path.name,
        facts=facts,
        photo=photo_thumbnail(live.photo),
        scores=scores,
        thumbnails=thumbnails,
        best=best.index,
        commands={score.index: _restore_command(image, video, force, score) for score in scores},
    )
    write_file(output, page.encode("utf-8", errors="surrogateescape"))
