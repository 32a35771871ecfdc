"""A Live Photo of whatever kind, opened: the key photo, its video, and the instant at which the photo was taken."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from livemoments.errors import FileError
from livemoments.runtime.image_files.exif import content_identifier
from livemoments.runtime.image_files.gain_map import GainMap, read_gain_map
from livemoments.runtime.image_files.photo import Photo, decode_photo, read_image_bytes
from livemoments.runtime.live_photo.claims import Claims, read_claims
from livemoments.runtime.live_photo.embedded import find_embedded
from livemoments.runtime.live_photo.movie import Movie
from livemoments.runtime.live_photo.pairing import PHOTO_SUFFIXES, VIDEO_SUFFIXES, find_photo, pair
from livemoments.runtime.video.span import Span

_APPLE_GAIN_MAP = b"urn:com:apple:photo:2020:aux:hdrgainmap"
_MAX_FILE_BYTES = 256 << 20
"""Motion Photos have 3 to 30 MB, a photo of 200 megapixels up to 100."""
APPLE, MOTION, PLAIN = "Apple Live Photo", "Motion Photo", "photo and video"


@dataclass(frozen=True, eq=False)
class OpenedLivePhoto:
    """A Live Photo whose photo is decoded and whose video is found.

    Attributes:
        path: the photo's file.
        photo: the key photo.
        video: the video's bytes.
        movie: what the video's header says.
        kind: ``Apple Live Photo``, ``Motion Photo`` (the video is in the photo's file) or ``photo and video``.
        found_by: what led to the video.
        claims: what the photo's XMP says.
        identifier: Apple's content identifier of the photo.
        key_time_s: when in the video the photo was taken; ``None``: nothing says so.
        key_time_from: what says so.
        gain_map: what an HDR display shows of the photo; ``None``: nothing, or a kind that is not read.
        notes: what was wrong and how it was taken, in words.
    """

    path: Path
    photo: Photo
    video: Span
    movie: Movie
    kind: str
    found_by: str
    claims: Claims
    identifier: str | None
    key_time_s: float | None
    key_time_from: str
    gain_map: GainMap | None = None
    notes: tuple[str, ...] = ()


def open_live_photo(
    path: str | os.PathLike[str], *, video: str | os.PathLike[str] | None = None, force: bool = False
) -> OpenedLivePhoto:
    """Open a Live Photo.

    Args:
        path: the photo, with its video inside or beside it; the video of a pair; or a folder that holds one pair.
        video: the video, where it is not found by its identifier or name.
        force: take a video whose content identifier is not the photo's.

    Raises:
        ImageError: the photo cannot be read.
        FileError: there is no video, or one that is damaged or belongs to another photo.
        ResourceError: memory ran out.
    """
    still, given = _resolve(Path(path), None if video is None else Path(video))
    _check_length(still)
    data = read_image_bytes(still)
    photo = decode_photo(still, data)
    claims = read_claims(photo.xmp)
    identifier = content_identifier(photo.exif)
    place = claims.gain_map_place(len(data))
    gain_map = read_gain_map(data, () if place is None else (place,))
    notes = _gain_map_notes(gain_map, claims, data)
    embedded = find_embedded(still, data, claims) if given is None else None
    if embedded is not None:
        movie, span, found_by = embedded.movie, embedded.span, embedded.found_by
        notes, kind = (*notes, *embedded.notes), MOTION
    else:
        paired = pair(still, identifier, video=given, force=force)
        if paired is None:
            claimed = ", although its metadata speak of one" if claims.is_motion else ""
            message = f"no video belongs to it, neither inside the file nor beside it{claimed}"
            raise FileError(still, message, fix="name the video with --video, or use --frame and --photo")
        movie, span, found_by = paired.movie, paired.span, paired.found_by
        notes = (*notes, *paired.notes)
        kind = APPLE if identifier is not None and identifier == movie.identifier else PLAIN
    if movie.video_tracks == 0:
        raise FileError(span.path, "holds no pictures, only other tracks", fix="copy it again from the phone")
    key_time_s, key_time_from = _key_time(movie, claims, kind)
    return OpenedLivePhoto(
        still, photo, span, movie, kind, found_by, claims, identifier, key_time_s, key_time_from, gain_map, notes
    )


def _resolve(path: Path, video: Path | None) -> tuple[Path, Path | None]:
    """The photo's file, and the video that is named."""
    if path.is_dir():
        files = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        photos = [entry for entry in files if entry.suffix.lower() in PHOTO_SUFFIXES]
        videos = [entry for entry in files if entry.suffix.lower() in VIDEO_SUFFIXES]
        if len(photos) != 1 or len(videos) > 1:
            message = f"holds {len(photos)} photos and {len(videos)} videos, not one Live Photo"
            raise FileError(path, message, fix="name one photo")
        return photos[0], video or (videos[0] if videos else None)
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and video is None:
        return find_photo(path), path
    return path, video


def _check_length(still: Path) -> None:
    """Refuse what would fill the memory: the photo's file is held as a whole, with the video in it."""
    try:
        length = still.stat().st_size
    except (OSError, ValueError):
        return  # said better by what reads it
    if length > _MAX_FILE_BYTES:
        message = f"is {length >> 20} MiB long; Live Photos have at most {_MAX_FILE_BYTES >> 20}"
        raise FileError(still, message, fix="name a phone's photo")


def _key_time(movie: Movie, claims: Claims, kind: str) -> tuple[float | None, str]:
    own = None if movie.key_time_s is None else float(movie.key_time_s)
    ways = [(own, "the still-image-time track"), (claims.time_s, "XMP")]
    for time_s, source in reversed(ways) if kind == MOTION else ways:
        if time_s is not None:
            return time_s, source
    return None, "nothing"


def _gain_map_notes(gain_map: GainMap | None, claims: Claims, data: bytes) -> tuple[str, ...]:
    if gain_map is None and (claims.has_gain_map or _APPLE_GAIN_MAP in data):
        return (
            "the photo has an HDR gain map that is dropped: those of HEIC and Apple's older ones cannot be carried",
        )
    return ()
