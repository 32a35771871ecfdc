"""Apple's still-image-time track added to a movie that lacks one, so that the new moment can be said at all.

Nothing in the file moves: the old header becomes free space, and the header with one more track goes to the end, behind
the track's only sample. Every sample of the phone stays at its byte.
Sources: QuickTime File Format Specification (Apple), "Timed Metadata Media", "Edit atoms", "Track header atoms"; the
track's values are those of an iPhone 6s.
"""

from __future__ import annotations

import struct

from livemoments.runtime.live_photo.boxes import Box, BoxError, children, find, find_all, unpack, walk
from livemoments.runtime.live_photo.movie import (
    STILL_TIME_KEY,
    MovieError,
    handler,
    is_still_time_track,
    movie_timescale,
)

_SAMPLE = struct.pack(">IIb", 9, 1, -1)
"""Length, the key's number, and the value that every phone writes: the instant is where the sample lies."""
_TO_END = 0
_MAX_BYTES = (1 << 32) - 1
_ENABLED_IN_MOVIE_PREVIEW_POSTER = 15
_ONE = 0x10000
_IDENTITY = struct.pack(">9i", _ONE, 0, 0, 0, _ONE, 0, 0, 0, 0x40000000)
_INT8 = 65
_UNDETERMINED = 0x55C4
"""The language ``und``, packed."""


def add_still_time_track(data: bytes, time_s: float) -> bytes:
    """The movie with a still-image-time track; one that is there, but cannot be moved in place, is replaced.

    Args:
        data: the whole file.
        time_s: the still's instant, in seconds of the movie.

    Raises:
        MovieError: the movie has no picture track or no timescale, is fragmented, or is longer than 4 GiB.
        BoxError: its structure is broken.
    """
    boxes = list(walk(data))
    moov = next((box for box in boxes if box.kind == b"moov"), None)
    timescale = movie_timescale(data, moov) if moov is not None else 0
    if moov is None or not timescale:
        raise MovieError("it has no header with a timescale")
    if find(data, moov, b"mvex") is not None:
        raise MovieError("it is fragmented: phones write no such Live Photos")
    video = next((track for track in find_all(data, moov, b"trak") if handler(data, track) == b"vide"), None)
    if video is None:
        raise MovieError("it has no picture track")
    before = bytearray(data[: boxes[-1].end])  # fewer than eight bytes that follow are no box
    _end_explicitly(before, boxes[-1])
    before[moov.start + 4 : moov.start + 8] = b"free"
    before += _box(b"mdat", _SAMPLE)
    if len(before) > _MAX_BYTES:
        raise MovieError("it is longer than 4 GiB")
    number = _next_track(data, moov)
    track = _track(
        number,
        described=_track_number(data, video),
        wait=max(1, round(time_s * timescale)),  # an empty edit of no length is read as none
        timescale=timescale,
        sample_at=len(before) - len(_SAMPLE),
    )
    parts = []
    for child in children(data, moov):
        if child.kind == b"mvhd":
            parts.append(_numbered(data, child, number + 1))
        elif child.kind != b"trak" or not is_still_time_track(data, child):
            parts.append(data[child.start : child.end])
    return bytes(before) + _box(b"moov", *parts, track)


def _end_explicitly(data: bytearray, last: Box) -> None:
    """A last box that reaches to the file's end, whatever that is, gets its length written: something follows now."""
    (size,) = struct.unpack_from(">I", data, last.start)
    if size == _TO_END:
        if last.end - last.start > _MAX_BYTES:
            raise MovieError("it is longer than 4 GiB")
        struct.pack_into(">I", data, last.start, last.end - last.start)


def _next_track(data: bytes, moov: Box) -> int:
    """A number that no track has: what the header keeps for the next one is not always true."""
    return max(_track_number(data, track) for track in find_all(data, moov, b"trak")) + 1


def _track_number(data: bytes, track: Box) -> int:
    header = find(data, track, b"tkhd")
    if header is None:
        raise MovieError("one of its tracks has no header")
    (version,) = unpack("B", data, header.body, header)
    return unpack("I", data, header.body + (20 if version == 1 else 12), header)[0]


def _numbered(data: bytes, header: Box, next_track: int) -> bytes:
    """The movie's header with the number of the next track, its last field."""
    if header.end - header.body < 100:
        raise BoxError("the movie's header is too short")
    return data[header.start : header.end - 4] + struct.pack(">I", next_track)


def _track(number: int, *, described: int, wait: int, timescale: int, sample_at: int) -> bytes:
    """A metadata track: nothing for ``wait`` ticks, then its sample."""
    tkhd = _full_box(
        b"tkhd",
        struct.pack(">IIII I", 0, 0, number, 0, wait + 1),
        bytes(16),
        _IDENTITY,
        bytes(8),
        flags=_ENABLED_IN_MOVIE_PREVIEW_POSTER,
    )
    edits = struct.pack(">I IiI IiI", 2, wait, -1, _ONE, 1, 0, _ONE)
    key = _box(b"keyd", b"mdta", STILL_TIME_KEY) + _box(b"dtyp", struct.pack(">II", 0, _INT8))
    keys = _box(b"keys", _box(struct.pack(">I", 1), key))
    samples = _box(
        b"stbl",
        _full_box(b"stsd", struct.pack(">I", 1), _box(b"mebx", bytes(6), struct.pack(">H", 1), keys)),
        _full_box(b"stts", struct.pack(">III", 1, 1, 1)),
        _full_box(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        _full_box(b"stsz", struct.pack(">II", len(_SAMPLE), 1)),
        _full_box(b"stco", struct.pack(">II", 1, sample_at)),
    )
    graphics = _full_box(b"gmin", struct.pack(">4H2H", 64, 0x8000, 0x8000, 0x8000, 0, 0))
    same_file = _box(b"dinf", _full_box(b"dref", struct.pack(">I", 1), _full_box(b"alis", flags=1)))
    media = _box(
        b"mdia",
        _full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, timescale, 1, _UNDETERMINED, 0)),
        _full_box(b"hdlr", b"mhlrmeta", bytes(12), b"\0"),
        _box(b"minf", _box(b"gmhd", graphics), _full_box(b"hdlr", b"dhlralis", bytes(12), b"\0"), same_file, samples),
    )
    reference = _box(b"tref", _box(b"cdsc", struct.pack(">I", described)))
    return _box(b"trak", tkhd, _box(b"edts", _full_box(b"elst", edits)), reference, media)


def _box(kind: bytes, *contents: bytes) -> bytes:
    body = b"".join(contents)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _full_box(kind: bytes, *contents: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags), *contents)
