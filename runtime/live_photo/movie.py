"""What a phone's movie says about itself, read from its ``moov`` box: identifier, key time, matrix, clean aperture.

Sources: QuickTime File Format Specification (Apple): "Metadata", "Timed Metadata Media", "Edit atoms", "Track aperture
mode dimensions atom"; ISO/IEC 14496-12:2022, 8.6.6 (edit lists) and 12.1.4.1 (clean aperture).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from livemoments.runtime.live_photo.boxes import Box, BoxError, children, find, find_all, unpack, walk, walk_by
from livemoments.runtime.video.span import Span
from livemoments.types import Size

IDENTIFIER_KEY = b"com.apple.quicktime.content.identifier"
STILL_TIME_KEY = b"com.apple.quicktime.still-image-time"
CREATION_KEY = b"com.apple.quicktime.creationdate"
MOVIE_BOXES = frozenset(
    b"ftyp moov mdat free skip wide pnot moof mfra uuid sidx styp meta udta emsg prft pdin ssix".split()
)
"""What lies at the top level of a movie; anything else there belongs to something that follows it."""
_MAX_MOOV_BYTES = 64 << 20
_MAX_TRACKS = 64
_EMPTY = (-1) & 0xFFFFFFFF
_EMPTY_64 = (-1) & 0xFFFFFFFFFFFFFFFF


class MovieError(ValueError):
    """No movie, or one whose structure is broken; in words."""


@dataclass(frozen=True, slots=True)
class Movie:
    """What the header says.

    Attributes:
        video_tracks: how many picture tracks there are.
        identifier: Apple's content identifier.
        key_time_s: when the still was taken, by the still-image-time track, in seconds of the movie.
        created: when it was taken, as QuickTime's metadata say.
        clean_aperture: the size that players show, in encoded pixels, where it is smaller than the encoded size.
        brand: the major brand; ``None`` where there is no ``ftyp``.
    """

    video_tracks: int
    identifier: str | None = None
    key_time_s: Fraction | None = None
    created: str | None = None
    clean_aperture: Size | None = None
    brand: str | None = None


def read_movie(span: Span) -> Movie:
    """Read the header; nothing is decoded.

    Raises:
        MovieError: it is no movie, or has no ``moov`` box, or a broken one.
        OSError: the file cannot be read.
    """
    brand, header = None, b""
    try:
        for box in walk_by(span.read, 0, span.size):
            if box.kind == b"ftyp":
                brand = span.read(box.body, 4).decode("latin-1")
            elif box.kind == b"moov":
                if box.end - box.start > _MAX_MOOV_BYTES:
                    raise MovieError(f"its header is {(box.end - box.start) >> 20} MiB long")
                header = span.read(box.start, box.end - box.start)
                break
            elif box.kind not in MOVIE_BOXES:
                break
        if not header:
            raise MovieError(_no_header(brand))
        return _parse(header, brand)
    except BoxError as error:
        raise MovieError(str(error)) from None


def _no_header(brand: str | None) -> str:
    if brand is not None and brand[:3] in ("hei", "hev", "mif", "msf", "avi"):
        return f"it is a still image ('{brand.strip()}'), not a video"
    return "it has no header (no 'moov' box)"


def _parse(data: bytes, brand: str | None) -> Movie:
    moov = next(walk(data))
    tracks = list(find_all(data, moov, b"trak"))
    if len(tracks) > _MAX_TRACKS:
        raise MovieError(f"it has {len(tracks)} tracks")
    videos = [track for track in tracks if handler(data, track) == b"vide"]
    timescale = movie_timescale(data, moov)
    keys = metadata_keys(data, moov)
    stills = [track for track in tracks if is_still_time_track(data, track)]
    return Movie(
        video_tracks=len(videos),
        identifier=_text(keys.get(IDENTIFIER_KEY)),
        key_time_s=_sample_time(data, stills[0], timescale) if stills and timescale else None,
        created=_text(keys.get(CREATION_KEY)),
        clean_aperture=_clean_aperture(data, videos[0]) if videos else None,
        brand=brand,
    )


def handler(data: bytes | bytearray, track: Box) -> bytes:
    """A track's kind of media: ``vide``, ``soun``, ``meta``; empty where it does not say."""
    box = find(data, track, b"mdia", b"hdlr")
    return bytes(data[box.body + 8 : box.body + 12]) if box is not None else b""


def movie_timescale(data: bytes | bytearray, moov: Box) -> int:
    """Ticks a second of edit lists and track durations; 0 where there is no movie header."""
    box = find(data, moov, b"mvhd")
    if box is None:
        return 0
    (version,) = unpack("B", data, box.body, box)
    return unpack("I", data, box.body + (20 if version == 1 else 12), box)[0]


def is_still_time_track(data: bytes | bytearray, track: Box) -> bool:
    """Whether a track is Apple's: timed metadata whose only sample lies at the still's instant."""
    box = find(data, track, b"mdia", b"minf", b"stbl", b"stsd")
    return box is not None and handler(data, track) == b"meta" and STILL_TIME_KEY in data[box.body : box.end]


def metadata_keys(data: bytes | bytearray, moov: Box) -> dict[bytes, bytes]:
    """QuickTime's metadata by key: the values' bytes."""
    return {key: bytes(data[box.body + 8 : box.end]) for key, box in metadata_values(data, moov).items()}


def metadata_values(data: bytes | bytearray, moov: Box) -> dict[bytes, Box]:
    """The ``data`` box of every key; its value follows eight bytes of type and locale."""
    for meta in (*find_all(data, moov, b"meta"), *find_all(data, moov, b"udta", b"meta")):
        table, listing = find(data, meta, b"keys"), find(data, meta, b"ilst")
        if table is None or listing is None:
            continue
        names = [bytes(data[key.body : key.end]) for key in walk(data, table.body + 8, table.end)]
        found = {}
        for item in children(data, listing):
            index, value = int.from_bytes(item.kind, "big"), find(data, item, b"data")
            if 1 <= index <= len(names) and value is not None and value.end >= value.body + 8:
                found[names[index - 1]] = value
        return found
    return {}


def edits(data: bytes | bytearray, track: Box) -> tuple[list[tuple[int, int | None]], Box | None]:
    """The edit list: durations in the movie's ticks, and where in the media each begins (``None``: an empty edit).

    Raises:
        BoxError: it is cut short.
    """
    box = find(data, track, b"edts", b"elst")
    if box is None:
        return [], None
    version, count = unpack("B3xI", data, box.body, box)
    layout, size, empty = ("QQ", 20, _EMPTY_64) if version == 1 else ("II", 12, _EMPTY)
    if count > (box.end - box.body - 8) // size:
        raise BoxError(f"the edit list says that it has {count} entries, more than there is room for")
    found: list[tuple[int, int | None]] = []
    for index in range(count):
        duration, media_time = unpack(layout, data, box.body + 8 + size * index, box)
        found.append((duration, None if media_time == empty else media_time))
    return found, box


def _sample_time(data: bytes, track: Box, timescale: int) -> Fraction:
    """When the track's only sample begins: behind the empty edits."""
    waited = Fraction(0)
    for duration, media_time in edits(data, track)[0]:
        if media_time is not None:
            break
        waited += Fraction(duration, timescale)
    return waited


def _clean_aperture(data: bytes, track: Box) -> Size | None:
    """From the sample description's ``clap``, else QuickTime's ``tapt``."""
    encoded = _encoded_size(data, track)
    size = _clap(data, track) or _tapt(data, track)
    if size is None or encoded is None or not 0 < size.width <= encoded.width or not 0 < size.height <= encoded.height:
        return None
    return None if size == encoded else size


def _encoded_size(data: bytes, track: Box) -> Size | None:
    entry = _sample_entry(data, track)
    if entry is None:
        return None
    width, height = unpack("HH", data, entry.body + 24, entry)
    return Size(height, width) if width and height else None


def _sample_entry(data: bytes, track: Box) -> Box | None:
    box = find(data, track, b"mdia", b"minf", b"stbl", b"stsd")
    return None if box is None else next(walk(data, box.body + 8, box.end), None)


def _clap(data: bytes, track: Box) -> Size | None:
    entry = _sample_entry(data, track)
    if entry is None or entry.body + 78 > entry.end:  # a visual sample entry's own fields
        return None
    box = next((found for found in walk(data, entry.body + 78, entry.end) if found.kind == b"clap"), None)
    if box is None:
        return None
    width, width_by, height, height_by = unpack("4I", data, box.body, box)
    return Size(height // height_by, width // width_by) if width_by and height_by else None


def _tapt(data: bytes, track: Box) -> Size | None:
    box = find(data, track, b"tapt", b"clef")
    if box is None:
        return None
    width, height = unpack("II", data, box.body + 4, box)
    return Size(height >> 16, width >> 16)


def _text(value: bytes | None) -> str | None:
    if value is None or len(value) > 256:
        return None
    return value.decode("utf-8", errors="replace").strip("\0 ") or None
