"""Live Photos out: a restored moment and the phone's own video as what the source was, an Apple pair or a Motion Photo.

The video's samples are never touched. An Apple pair gets a new content identifier on both sides, so that it does not
pass for the original, and its still-image-time track points to the new moment; a Motion Photo gets the XMP that fits.
The gain map of an HDR photo is carried to the moment, where the file is a JPEG.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from livemoments.errors import FileError, UsageError
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.encode import format_of
from livemoments.runtime.image_files.exif import with_content_identifier
from livemoments.runtime.image_files.gain_map import encode_gain_map
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.image_files.tiff_tags import TiffError
from livemoments.runtime.live_photo.container_packet import VideoClaim, container_packet
from livemoments.runtime.live_photo.gain_of_moment import carry_gain_map
from livemoments.runtime.live_photo.moments import Moment
from livemoments.runtime.live_photo.movie import MovieError
from livemoments.runtime.live_photo.movie_edit import edit_movie
from livemoments.runtime.live_photo.opened import APPLE, MOTION, OpenedLivePhoto
from livemoments.runtime.live_photo.registration import View
from livemoments.store.files import check_file, write_file

_MIME = {"JPEG": "image/jpeg", "HEIF": "image/heic"}
_QUICKTIME = "qt  "
_BOX_HEADER_BYTES = 8
_MAX_VIDEO_BYTES = 128 << 20
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, eq=False)
class LiveOutput:
    """How one moment becomes a file, or a pair of files.

    Attributes:
        live: the moment's images; the photo's metadata claim what follows it.
        gain_map: what follows first: a JPEG.
        trailer: what follows the photo in its file: a Motion Photo's video.
        video_path: where an Apple pair's video goes; ``None``: it is in the trailer.
        video: its bytes.
        notes: what was done, in words.
    """

    live: LivePhoto[Photo]
    gain_map: bytes
    trailer: bytes
    video_path: Path | None
    video: bytes
    notes: tuple[str, ...]

    def with_photo(self, *, exif: bytes | None = None, xmp: bytes | None = None) -> LiveOutput:
        """With other metadata of the photo; ``None``: as they are."""
        photo = self.live.photo
        photo = replace(photo, exif=photo.exif if exif is None else exif, xmp=photo.xmp if xmp is None else xmp)
        return replace(self, live=replace(self.live, photo=photo))

    def write_video(self, photo: Path) -> None:
        """Write the pair's video beside its photo, which is there; if that fails the photo goes too.

        Raises:
            OutputError: the place cannot be written.
            ResourceError: the disk is full.
        """
        if self.video_path is None:
            return
        try:
            write_file(self.video_path, self.video)
        except BaseException:
            photo.unlink(missing_ok=True)
            raise


def video_path_of(output: Path, source: OpenedLivePhoto) -> Path | None:
    """Where the video of a pair goes; ``None`` for a Motion Photo."""
    return None if source.kind == MOTION else output.with_suffix(source.video.path.suffix)


def check_live_output(output: Path, source: OpenedLivePhoto) -> None:
    """Refuse before long work what could not be written as a Live Photo.

    Raises:
        UsageError: the source is neither an Apple Live Photo nor a Motion Photo, or the format holds none.
        OutputError: the video cannot be written there.
        FileError: the video is too large, or would be overwritten.
    """
    if source.kind not in (APPLE, MOTION):
        message = f"{os.fspath(source.path)}: a photo and a video without a content identifier are no Live Photo"
        raise UsageError(message, fix="leave out --write-live")
    if format_of(output) not in _MIME:
        raise UsageError(f"{os.fspath(output)}: a Live Photo is a .heic or .jpg file", fix="choose another -o")
    if source.video.size > _MAX_VIDEO_BYTES:
        raise FileError(source.video.path, f"its video is {source.video.size >> 20} MiB long", fix="use a shorter one")
    path = video_path_of(output, source)
    if path is not None:
        check_file(path)
        if path.exists() and any(path.samefile(own) for own in (source.path, source.video.path)):
            raise FileError(path, "is the Live Photo's own; it would be overwritten", fix="choose another -o")


def prepare_output(
    moment: Moment, source: OpenedLivePhoto, view: View, output: Path, *, write_live: bool
) -> LiveOutput:
    """Prepare a moment to be written, as a photo or as what its source was.

    Args:
        moment: the moment.
        source: the Live Photo that it is of.
        view: what the moment shows of the photo.
        output: the photo's file.
        write_live: as an Apple pair or a Motion Photo.

    Raises:
        FileError: the video's header, or the photo's maker note, cannot be edited.
    """
    gain_map, notes = _gain_map(moment, source, view, output)
    still = LiveOutput(moment.live, gain_map, b"", None, b"", notes)
    if write_live and source.kind == MOTION:
        return _motion_photo(still, moment, source, output)
    if gain_map:
        packet = container_packet(moment.live.photo.xmp, photo_mime=_MIME["JPEG"], gain_map_bytes=len(gain_map))
        still = still.with_photo(xmp=packet)
    return _apple_pair(still, moment, source, output) if write_live else still


def _gain_map(moment: Moment, source: OpenedLivePhoto, view: View, output: Path) -> tuple[bytes, tuple[str, ...]]:
    if source.gain_map is None:
        return b"", ()
    if format_of(output) != "JPEG":
        return b"", ("the photo's HDR gain map is dropped: only a JPEG (-o ….jpg) can carry it",)
    carried = carry_gain_map(source.gain_map, source.photo.size, view, moment.live)
    how = f"{carried.followed:.0%} of it followed the scene, the rest is judged by colour"
    return encode_gain_map(carried.gain), (f"the photo's HDR gain map is carried to the moment: {how}",)


def _apple_pair(still: LiveOutput, moment: Moment, source: OpenedLivePhoto, output: Path) -> LiveOutput:
    identifier = str(uuid.uuid4()).upper()
    try:
        exif = with_content_identifier(moment.live.photo.exif or b"", identifier)
        video = edit_movie(source.video.read(0, source.video.size), identifier=identifier, time_s=moment.time_s)
    except (MovieError, TiffError) as error:
        fix = "leave out --write-live: the photo alone can be written"
        raise FileError(source.video.path, f"cannot be made the video of another moment: {error}", fix=fix) from None
    note = f"Apple pair, content identifier {identifier}, still at {moment.time_s:.3f} s"
    made = replace(still, video_path=video_path_of(output, source), video=video, notes=(*still.notes, note))
    return made.with_photo(exif=exif)


def _motion_photo(still: LiveOutput, moment: Moment, source: OpenedLivePhoto, output: Path) -> LiveOutput:
    kind = format_of(output)
    is_box = kind == "HEIF"
    video = source.video.read(0, source.video.size)
    claim = VideoClaim(
        time_us=round(moment.time_s * _MICROSECONDS),
        mime="video/quicktime" if source.movie.brand == _QUICKTIME else "video/mp4",
        length=len(video),
        is_oppo=source.claims.is_oppo,
    )
    packet = container_packet(
        moment.live.photo.xmp,
        photo_mime=_MIME[kind],
        padding=_BOX_HEADER_BYTES if is_box else 0,
        gain_map_bytes=len(still.gain_map),
        video=claim,
    )
    header = struct.pack(">I4s", _BOX_HEADER_BYTES + len(video), b"mpvd") if is_box else b""
    note = f"Motion Photo, still at {moment.time_s:.3f} s, video of {len(video)} bytes"
    return replace(still, trailer=header + video, notes=(*still.notes, note)).with_photo(xmp=packet)
