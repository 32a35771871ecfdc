"""Apple's movie with another identifier and another instant of the still; every other byte stays as the phone wrote it.

Both are overwritten in place: no box changes its size, so that every offset stays true. Only a movie that does not say
when its still was taken gets a track that does (:mod:`.still_time_track`).
"""

from __future__ import annotations

import struct

from livemoments.runtime.live_photo.boxes import Box, BoxError, find, find_all, unpack, walk
from livemoments.runtime.live_photo.movie import (
    IDENTIFIER_KEY,
    MovieError,
    edits,
    is_still_time_track,
    metadata_values,
    movie_timescale,
)
from livemoments.runtime.live_photo.still_time_track import add_still_time_track


def edit_movie(data: bytes, *, identifier: str, time_s: float) -> bytes:
    """The movie of a Live Photo, made that of another moment.

    Args:
        data: the whole file.
        identifier: as long as the one that is there.
        time_s: when the still is now, in seconds of the movie.

    Raises:
        MovieError: it has no identifier of that length, or no header that a still-image-time track can be added to.
    """
    try:
        moov = next((box for box in walk(data) if box.kind == b"moov"), None)
        if moov is None:
            raise MovieError("it has no header (no 'moov' box)")
        edited = bytearray(data)
        _set_identifier(edited, moov, identifier)
        is_moved = _move_still(edited, moov, time_s)
        return bytes(edited) if is_moved else add_still_time_track(bytes(edited), time_s)
    except BoxError as error:
        raise MovieError(str(error)) from None


def _set_identifier(data: bytearray, moov: Box, identifier: str) -> None:
    value = metadata_values(data, moov).get(IDENTIFIER_KEY)
    if value is None or value.end - value.body - 8 != len(identifier):
        raise MovieError("it has no content identifier of the usual length")
    data[value.body + 8 : value.end] = identifier.encode("ascii")


def _move_still(data: bytearray, moov: Box, time_s: float) -> bool:
    """Move the still where an empty edit says when it was; whether there is one."""
    track = next((track for track in find_all(data, moov, b"trak") if is_still_time_track(data, track)), None)
    timescale = movie_timescale(data, moov)
    found, box = edits(data, track) if track is not None else ([], None)
    if track is None or box is None or not timescale or not found or found[0][1] is not None:
        return False
    wanted = max(1, round(time_s * timescale))  # an empty edit of no length is read as none
    (version,) = unpack("B", data, box.body, box)
    layout = ">Q" if version == 1 else ">I"
    struct.pack_into(layout, data, box.body + 8, wanted)
    later = sum(duration for duration, _ in found[1:])
    header = find(data, track, b"tkhd")
    if header is not None:
        (version,) = unpack("B", data, header.body, header)
        at = header.body + (28 if version == 1 else 20)
        struct.pack_into(">Q" if version == 1 else ">I", data, at, wanted + later)
    return True
