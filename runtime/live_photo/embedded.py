"""Where in a photo's file its video lies. What the metadata claim is believed only where a movie begins there.

The order of trust: the XMP container's directory, Samsung's trailer, the ``mpvd`` box of HEIC, MicroVideo's offset,
and at last every ``ftyp`` in the file, of which the largest movie wins. A movie ends before the first box that movies
do not have (Samsung's ``sefd``), and before a second ``ftyp``: OPPO's phones write a second stream behind the one that
is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from livemoments.runtime.live_photo import sef
from livemoments.runtime.live_photo.boxes import BoxError, walk
from livemoments.runtime.live_photo.claims import Claims
from livemoments.runtime.live_photo.movie import MOVIE_BOXES, Movie, MovieError, read_movie
from livemoments.runtime.video.span import Span

_TYPE = b"ftyp"
_MAX_TYPE_BYTES = 512
_STILL_BRANDS = frozenset(b"heic heix hevc hevx heim heis mif1 mif2 msf1 avif avis".split())
_SEARCHED_BYTES = 4096
"""Behind a declared start: Samsung's length counts its trailer's block header, others count padding."""
_MAX_SCANNED = 64
"""Places that look like a movie's start and are none, before the search ends."""
_CUT_SHORT = "the video is cut short"


@dataclass(frozen=True, slots=True)
class EmbeddedVideo:
    """The video in a photo's file.

    Attributes:
        span: its bytes.
        movie: what its header says.
        found_by: what led there.
        notes: claims that were wrong, in words.
    """

    span: Span
    movie: Movie
    found_by: str
    notes: tuple[str, ...] = ()


def find_embedded(path: Path, data: bytes, claims: Claims) -> EmbeddedVideo | None:
    """Find the video in a photo's file.

    Args:
        path: the file.
        data: all its bytes.
        claims: what its XMP says.

    Returns:
        The first movie with a picture track that a claim leads to, else the largest one that a search finds; ``None``
        where there is none.
    """
    notes: list[str] = []
    for found_by, start in _claimed(data, claims):
        near = next(_starts(data, start, start + _SEARCHED_BYTES), None) if start >= 0 else None
        video = None if near is None else _movie_at(path, data, near, found_by)
        if video is not None:
            return EmbeddedVideo(video.span, video.movie, found_by, (*notes, *video.notes))
        notes.append(f"{found_by} points to byte {start}, where no movie begins")
    found = [
        video
        for _, start in zip(range(_MAX_SCANNED), _starts(data, 0, len(data)), strict=False)
        if (video := _movie_at(path, data, start, "search for a movie's start")) is not None
    ]
    if not found:
        return None
    best = max(found, key=lambda video: video.span.size)
    if len(found) > 1:
        notes.append(f"{len(found)} movies in the file: the largest was taken")
    return EmbeddedVideo(best.span, best.movie, best.found_by, (*notes, *best.notes))


def _claimed(data: bytes, claims: Claims) -> Iterator[tuple[str, int]]:
    container = [(name, offset) for name, offset in claims.offsets_from_end() if name == "XMP container"]
    older = [(name, offset) for name, offset in claims.offsets_from_end() if name != "XMP container"]
    yield from ((name, len(data) - offset) for name, offset in container)
    yield from (("Samsung's trailer", start) for start in sef.video_starts(data))
    yield from (("the mpvd box", start) for start in _mpvd_starts(data))
    yield from ((name, len(data) - offset) for name, offset in older)


def _mpvd_starts(data: bytes) -> Iterator[int]:
    if data[4:8] != _TYPE:
        return
    try:
        for box in walk(data):
            if box.kind == b"mpvd":
                yield box.body
    except BoxError:
        return  # what follows the boxes, e.g. Samsung's trailer, is none


def _starts(data: bytes, first: int, last: int) -> Iterator[int]:
    """Where a movie may begin: a plausible ``ftyp`` of a brand that is no still's."""
    at = data.find(_TYPE, first + 4, last + 8)
    while at >= 0:
        size = int.from_bytes(data[at - 4 : at], "big")
        brand = data[at + 4 : at + 8]
        if 16 <= size <= _MAX_TYPE_BYTES and brand not in _STILL_BRANDS and all(32 <= c < 127 for c in brand):
            yield at - 4
        at = data.find(_TYPE, at + 4, last + 8)


def _movie_at(path: Path, data: bytes, start: int, found_by: str) -> EmbeddedVideo | None:
    end, is_cut = movie_end(data, start)
    span = Span(path, start, end)
    try:
        movie = read_movie(span)
    except (MovieError, OSError):
        return None
    if movie.video_tracks == 0:
        return None
    return EmbeddedVideo(span, movie, found_by, (_CUT_SHORT,) * is_cut)


def movie_end(data: bytes, start: int) -> tuple[int, bool]:
    """Where the movie that begins at ``start`` ends, and whether its last box is cut short by the file's end."""
    end = start
    try:
        for box in walk(data, start):
            if box.kind not in MOVIE_BOXES or (box.kind == _TYPE and box.start != start):
                return box.start, False
            end = box.end
    except BoxError:
        kind = bytes(data[end + 4 : end + 8])
        is_cut = kind in MOVIE_BOXES and int.from_bytes(data[end : end + 4], "big") > len(data) - end
        return (len(data), True) if is_cut else (end, False)
    return end, False
