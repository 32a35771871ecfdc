"""``livemoments restore --live``: moments of a Live Photo, each a photo of its own."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.extras import needs_extra
from livemoments.cli.output import stdout_is_ours, write_json
from livemoments.cli.restore_options import read_restore_options
from livemoments.cli.results import result_document, result_summary
from livemoments.errors import OutputError, UsageError
from livemoments.progress import Progress

if TYPE_CHECKING:
    from livemoments.runtime.live_photo.clip import LiveClip
    from livemoments.runtime.live_photo.opened import OpenedLivePhoto
    from livemoments.runtime.live_photo.placement import Placement

_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "HEIF": ".heic", "TIFF": ".tif", "WEBP": ".webp"}
_NAME_THEM = "say --at 1.2s, --frame 37 or --best; livemoments frames lists them"


@dataclass(frozen=True, slots=True)
class MomentChoice:
    """Which moments the user named: times, a frame's number (as the path that the option reads), or the best one."""

    times: tuple[str, ...]
    frame: Path | None
    best: bool

    def check(self) -> None:
        """Raise before anything is read.

        Raises:
            UsageError: no moment is named, in two ways, or not by a number.
        """
        ways = bool(self.times) + (self.frame is not None) + self.best
        if ways != 1:
            what = "which moment is to be restored?" if ways == 0 else "--at, --frame and --best exclude each other"
            raise UsageError(what, fix=_NAME_THEM)
        if self.frame is not None and not str(self.frame).isdecimal():
            raise UsageError(f"with --live, --frame is a number, not '{self.frame}'", fix=_NAME_THEM)

    def indices(self, clip: LiveClip, placement: Placement, progress: Progress) -> list[int]:
        """The frames, each once, in the order in which they were named.

        Raises:
            UsageError: there is none of that time or number.
            FileError: a frame is damaged.
        """
        from livemoments.runtime.live_photo.moments import parse_time
        from livemoments.runtime.live_photo.scores import best_frame, score_frames

        if self.best:
            return [best_frame(score_frames(clip, placement.key_index, progress=progress)).index]
        if self.frame is not None:
            return [clip.check(int(str(self.frame)))]
        return list(dict.fromkeys(clip.at(parse_time(text)) for text in self.times))


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What the user asked for: the Live Photo, the moments, and where the results go."""

    image: Path
    choice: MomentChoice
    bundle: Path | None
    video: Path | None
    output: Path | None
    force: bool
    write_live: bool


def restore_live(
    request: LiveRequest, options: Mapping[str, Any], bit_depth: str | None, *, as_json: bool, progress: Progress
) -> None:
    """Restore moments and say what was done."""
    request.choice.check()
    bundle, output, force = request.bundle, request.output, request.force
    with stdout_is_ours(), needs_extra("reading Live Photos", "livephoto"):
        from livemoments.checkpoints import trained_bundle
        from livemoments.runtime.image_files.photo import ensure_writable
        from livemoments.runtime.live_file import LiveFile
        from livemoments.runtime.live_photo.clip import LiveClip
        from livemoments.runtime.live_photo.moments import moments
        from livemoments.runtime.live_photo.opened import open_live_photo
        from livemoments.runtime.live_photo.placement import place
        from livemoments.runtime.live_photo.writing import check_live_output, prepare_output
        from livemoments.runtime.restore import restore

        if output is not None:
            ensure_writable(output)
        chosen = read_restore_options(options, bit_depth=None if bit_depth is None else int(bit_depth))
        opened = open_checked(trained_bundle() if bundle is None else bundle, progress)
        live = open_live_photo(request.image, video=request.video, force=force)
        clip = LiveClip(live)
        with progress.task("Laying the video over the photo"):
            placement = place(clip, force=force)
        indices = request.choice.indices(clip, placement, progress)
        outputs = _outputs(output, live, [clip.times_s[index] for index in indices])
        if request.write_live:
            for path in outputs:
                check_live_output(path, live)
        documents, lines = [], []
        with _shared_cache(options, small=bundle is None, count=len(indices)) as cache:
            if cache is not None:
                chosen = replace(chosen, kv_cache=cache)
            for moment, path in zip(moments(clip, placement, indices), outputs, strict=True):
                started = time.perf_counter()
                origin = {
                    "kind": live.kind,
                    "photo": live.path.name,
                    "frame": moment.index,
                    "time_s": round(moment.time_s, 6),
                    "key_frame": placement.key_index,
                    "notes": list(moment.notes),
                }
                written = prepare_output(moment, live, placement.view, path, write_live=request.write_live)
                result = restore(
                    opened,
                    written.live,
                    chosen,
                    output=path,
                    progress=progress,
                    live_file=LiveFile(origin, written.trailer, written.gain_map, request.write_live),
                )
                written.write_video(path)
                all_notes = (*moment.notes, *written.notes)
                seconds = time.perf_counter() - started
                found = {"frame": moment.index, "time_s": moment.time_s, "notes": all_notes}
                documents.append(result_document(result, path, seconds) | found)
                said = f"  frame {moment.index} at {moment.time_s:.3f} s of {live.path.name} ({live.kind})"
                notes = [f"  {note}" for note in all_notes]
                lines += [result_summary(result, path, seconds), said, *notes]
    if as_json:
        about = {
            "photo": live.path,
            "video": live.video.path,
            "kind": live.kind,
            "key_frame": placement.key_index,
            "notes": (*live.notes, *clip.notes, *placement.notes),
        }
        write_json({"live": about, "moments": documents})
    else:
        click.echo("\n".join(lines))


def _outputs(output: Path | None, live: OpenedLivePhoto, times_s: list[float]) -> list[Path]:
    """Where each moment goes; nothing of the Live Photo itself is ever written to.

    Raises:
        OutputError: a file would be overwritten that is the Live Photo's, or that nobody named.
    """
    from livemoments.runtime.image_files import heif

    suffix = _SUFFIXES.get(live.photo.format, ".png")
    if suffix == ".heic" and not heif.can_write():
        suffix = ".jpg"
    if output is None:
        paths = [Path(f"{live.path.stem}-{time_s:.3f}s{suffix}") for time_s in times_s]
    elif len(times_s) == 1:
        paths = [output]
    else:
        paths = [output.with_name(f"{output.stem}-{time_s:.3f}s{output.suffix}") for time_s in times_s]
    for path in paths:
        if output is None and path.exists():
            raise OutputError(path, "exists", fix="name the output with -o")
        for own in (live.path, live.video.path):
            if path.exists() and path.samefile(own):
                raise OutputError(path, "is the Live Photo itself; it would be overwritten", fix="choose another -o")
    return paths


@contextlib.contextmanager
def _shared_cache(options: Mapping[str, Any], *, small: bool, count: int) -> Iterator[Path | None]:
    """A folder for keys and values that several moments share, where the network is small enough to keep them all.

    Those of the published network take gigabytes a tile: there ``--kv-cache`` says where they may go.
    """
    if count < 2 or not small or options.get("kv_cache") is not None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="livemoments-") as folder:
        yield Path(folder)
