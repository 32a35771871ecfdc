"""Live Photos of every kind, written by hand: containers, trailers and tracks without the code under test."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size

RATE = 30
PHOTO_SIZE = Size(384, 512)
VIDEO_SIZE = Size(192, 256)
IDENTIFIER = "E905E6C6-C747-4805-942F-9904A0281F02"
OTHER_IDENTIFIER = "11111111-2222-3333-4444-555555555555"
KEY_FRAME = 4
STEP_PX = 2.0
"""How far the scene moves a video frame, in video pixels."""

_SPACES = (
    'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" '
    'xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    'xmlns:Item="http://ns.google.com/photos/1.0/container/item/" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"'
)


def scene(seed: int, size: Size = PHOTO_SIZE) -> np.ndarray:
    """(H, W, 3) uint8: texture with margins on all sides, from which photo and frames are cut."""
    picture = synthetic_photograph(Size(size.height * 3 // 2, size.width * 3 // 2), seed=seed)
    return cv2.GaussianBlur(picture, (0, 0), 1.2)


def cut(picture: np.ndarray, x: float, y: float, width: float, height: float, size: Size) -> np.ndarray:
    """A window of the scene at any place, resampled to a size with the low-pass that a smaller size needs."""
    scale = width / size.width
    if scale > 1:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.4 * scale)
    step_x, step_y = width / size.width, height / size.height
    matrix = np.array([[step_x, 0, x + step_x / 2 - 0.5], [0, step_y, y + step_y / 2 - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, (size.width, size.height), flags=flags, borderMode=cv2.BORDER_REFLECT)


def photo_and_frames(
    seed: int,
    count: int = 9,
    *,
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    video_size: Size = VIDEO_SIZE,
    photo_size: Size = PHOTO_SIZE,
    step_px: float = STEP_PX,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A photo, and a clip that slides over the same scene and shows, at ``KEY_FRAME``, ``window`` of the photo.

    Args:
        window: left, top, width, height as fractions of the photo.
    """
    picture = scene(seed, photo_size)
    x0, y0 = photo_size.width // 4, photo_size.height // 4
    photo = np.ascontiguousarray(picture[y0 : y0 + photo_size.height, x0 : x0 + photo_size.width])
    left, top, width, height = window
    w, h = width * photo_size.width, height * photo_size.height
    frames = []
    for number in range(count):
        shift = (number - KEY_FRAME) * step_px * w / video_size.width
        x, y = x0 + left * photo_size.width + shift, y0 + top * photo_size.height
        frames.append(cut(picture, x, y, w, h, video_size))
    return photo, frames


def movie_bytes(
    frames: Sequence[np.ndarray],
    *,
    container: str = "mp4",
    brand: str | None = None,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    matrix: int = 5,
    full_range: bool = False,
    transfer: int | None = None,
    primaries: int | None = None,
    codec: str = "libx264",
    metadata: dict[str, str] | None = None,
    rotation: float | None = None,
) -> bytes:
    """A movie; ``times`` in thirtieths of a second; ``matrix``, ``transfer`` and ``primaries`` as in H.273."""
    import av

    stream_bytes = io.BytesIO()
    options = {"brand": brand} if brand else {}
    if metadata:
        options["movflags"] = "use_metadata_tags"
    height, width = frames[0].shape[:2]
    with av.open(stream_bytes, "w", format=container, options=options) as output:
        output.metadata.update(metadata or {})
        extra = {"crf": "8", "preset": "veryfast"} if codec.startswith("lib") else {}
        if codec == "libx265":
            extra["x265-params"] = "log-level=none:pools=1:frame-threads=1"
        stream: Any = output.add_stream(codec, rate=RATE, options=extra)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.time_base = Fraction(1, RATE)
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full_range else 1
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if primaries is not None:
            stream.codec_context.color_primaries = primaries
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            if pixels.dtype == np.uint16:  # planes of yuv420p10le, one above the other
                frame = av.VideoFrame.from_ndarray(pixels, format=pixel_format)
                frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
            else:
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format=pixel_format, dst_colorspace=matrix, dst_color_range=2 if full_range else 1
                )
            frame.pts = times[number] if times is not None else number
            frame.time_base = Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return stream_bytes.getvalue()


def box(kind: bytes, *contents: bytes) -> bytes:
    """One box."""
    body = b"".join(contents)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def top_boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, start and end of every box at the top level."""
    found, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        size = size or len(data) - at
        found.append((kind, at, at + size))
        at += size
    return found


def part(data: bytes, kind: bytes) -> bytes:
    """The first box of a kind at the top level, header included."""
    return next(data[start:end] for found, start, end in top_boxes(data) if found == kind)


def with_still_time(movie: bytes, seconds: Fraction | float) -> bytes:
    """Apple's still-image-time track added to a movie whose ``moov`` comes last: an empty edit, then one sample."""
    moov = part(movie, b"moov")
    start = movie.index(moov)
    mvhd = moov.index(b"mvhd")
    (timescale,) = struct.unpack_from(">I", moov, mvhd + 4 + 12)
    empty = round(seconds * timescale)
    sample_at = len(movie) + 8  # in a box of its own behind everything; the moov grows, so its place is set below
    key = box(b"keyd", b"mdta", b"com.apple.quicktime.still-image-time")
    table = struct.pack(">I4s", 8 + len(key) + 16, b"\0\0\0\1") + key + box(b"dtyp", struct.pack(">II", 0, 65))
    entry = box(b"mebx", bytes(6), struct.pack(">H", 1), box(b"keys", table))

    def track(offset: int) -> bytes:
        identity = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
        tkhd = box(b"tkhd", struct.pack(">IIIIII8xhhhh", 15, 0, 0, 9, 0, empty + 1, 0, 0, 0, 0), identity, bytes(8))
        lines = struct.pack(">IiI", empty, -1, 0x10000) + struct.pack(">IiI", 1, 0, 0x10000)
        elst = box(b"elst", struct.pack(">II", 0, 2), lines)
        stbl = box(
            b"stbl",
            box(b"stsd", struct.pack(">II", 0, 1), entry),
            box(b"stts", struct.pack(">IIII", 0, 1, 1, 1)),
            box(b"stsc", struct.pack(">IIIII", 0, 1, 1, 1, 1)),
            box(b"stsz", struct.pack(">III", 0, 9, 1)),
            box(b"stco", struct.pack(">III", 0, 1, offset)),
        )
        gmhd = box(b"gmhd", box(b"gmin", struct.pack(">IHHHHHH", 0, 64, 32768, 32768, 32768, 0, 0)))
        dinf = box(b"dinf", box(b"dref", struct.pack(">II", 0, 1), box(b"url ", struct.pack(">I", 1))))
        mdia = box(
            b"mdia",
            box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, timescale, 1, 0x55C4, 0)),
            box(b"hdlr", struct.pack(">I4s4s", 0, b"mhlr", b"meta"), bytes(13)),
            box(b"minf", gmhd, dinf, stbl),
        )
        return box(b"trak", tkhd, box(b"edts", elst), mdia)

    sample_at += len(track(0))
    grown = box(b"moov", moov[8:], track(sample_at))
    return movie[:start] + grown + movie[start + len(moov) :] + box(b"mdat", struct.pack(">IIB", 9, 1, 255))


def apple_movie(
    frames: Sequence[np.ndarray], identifier: str | None = IDENTIFIER, key_frame: int | None = KEY_FRAME, **options: Any
) -> bytes:
    """A QuickTime movie as iPhones write it: identifier among the metadata, still-image-time track."""
    metadata = {"com.apple.quicktime.content.identifier": identifier} if identifier else None
    movie = movie_bytes(frames, container="mov", metadata=metadata, **options)
    return movie if key_frame is None else with_still_time(movie, Fraction(key_frame, RATE))


def apple_note(identifier: str) -> bytes:
    """Apple's maker note with a ContentIdentifier and nothing else."""
    text = identifier.encode() + b"\0"
    return b"Apple iOS\0\0\1MM" + struct.pack(">HHHIII", 1, 17, 2, len(text), 32, 0) + text


def exif_block(
    *, identifier: str | None = None, orientation: int = 1, taken: str | None = "2021:04:10 11:44:00", sub: str = "814",
    comment: bytes | None = None,
) -> bytes:  # fmt: skip
    """An EXIF block with its prefix."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Apple" if identifier else "Examplecam"
    exif[ExifTags.Base.Orientation] = orientation
    inner: dict[int, Any] = {}
    if taken:
        inner |= {ExifTags.Base.DateTimeOriginal: taken, ExifTags.Base.DateTimeDigitized: taken}
        inner |= {ExifTags.Base.SubsecTimeOriginal: sub, ExifTags.Base.OffsetTimeOriginal: "+01:00"}
    if identifier:
        inner[ExifTags.Base.MakerNote] = apple_note(identifier)
    if comment is not None:
        inner[ExifTags.Base.UserComment] = comment
    exif.get_ifd(ExifTags.IFD.Exif).update(inner)
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (47, 0, 1)})
    return exif.tobytes()


def still_bytes(
    pixels: np.ndarray,
    *,
    kind: str = "JPEG",
    exif: bytes | None = None,
    xmp: str | None = None,
    icc: bytes | None = None,
) -> bytes:
    """A JPEG or HEIC of a photo."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    held: dict[str, Any] = {"exif": exif, "xmp": xmp.encode() if xmp else None, "icc_profile": icc}
    stream = io.BytesIO()
    options = {"subsampling": "4:4:4"} if kind == "JPEG" else {}
    given = {key: value for key, value in held.items() if value}
    Image.fromarray(pixels).save(stream, kind, quality=95, **options, **given)
    return stream.getvalue()


def item(semantic: str, mime: str, length: int | None, padding: int | None = 0) -> str:
    """One entry of the XMP container's directory."""
    fields = {"Mime": mime, "Semantic": semantic, "Length": length, "Padding": padding}
    said = " ".join(f'Item:{name}="{value}"' for name, value in fields.items() if value is not None)
    return f'<rdf:li rdf:parseType="Resource"><Container:Item {said}/></rdf:li>'


def motion_xmp(*items: str, time_us: int | None = None, attributes: str = 'GCamera:MotionPhoto="1"') -> str:
    """The XMP of a Motion Photo."""
    if time_us is not None:
        attributes += f' GCamera:MotionPhotoPresentationTimestampUs="{time_us}"'
    directory = f"<Container:Directory><rdf:Seq>{''.join(items)}</rdf:Seq></Container:Directory>" if items else ""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {_SPACES} {attributes}>{directory}</rdf:Description></rdf:RDF></x:xmpmeta>'
    )


def key_time_us() -> int:
    """``KEY_FRAME`` in microseconds."""
    return round(KEY_FRAME * 1_000_000 / RATE)


def sef_trailer(*blocks: tuple[bytes, bytes]) -> bytes:
    """Samsung's trailer of named blocks."""
    body, entries = b"", []
    for name, contents in blocks:
        block = struct.pack("<HHI", 0, 0x0A30, len(name)) + name + contents
        entries.append((len(body), len(block)))
        body += block
    head = b"SEFH" + struct.pack("<II", 107, len(entries))
    for start, size in entries:
        head += struct.pack("<HHII", 0, 0x0A30, len(body) - start, size)
    return body + head + struct.pack("<I", len(head)) + b"SEFT"


def mpv2(offset: int, length: int) -> bytes:
    """What Samsung's newer phones write instead of the video."""
    return b"mpv2" + struct.pack(">II", offset, length)


def google_photo(pixels: np.ndarray, movie: bytes, *, kind: str = "JPEG", exif: bytes | None = None) -> bytes:
    """A Motion Photo as the format says: JPEG with the movie behind it, HEIC with it in an ``mpvd`` box."""
    mime = "image/jpeg" if kind == "JPEG" else "image/heic"
    padding = 0 if kind == "JPEG" else 8
    items = item("Primary", mime, 0, padding), item("MotionPhoto", "video/mp4", len(movie))
    xmp = motion_xmp(*items, time_us=key_time_us())
    still = still_bytes(pixels, kind=kind if kind == "JPEG" else "HEIF", exif=exif, xmp=xmp)
    return still + (movie if kind == "JPEG" else box(b"mpvd", movie))


def write(path: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_pair(
    folder: Path, photo: np.ndarray, frames: Sequence[np.ndarray], *, name: str = "IMG_0001", kind: str = "JPEG",
    identifier: str | None = IDENTIFIER, **options: Any,
) -> tuple[Path, Path]:  # fmt: skip
    """An Apple pair; returns the photo and the video."""
    suffix = ".JPG" if kind == "JPEG" else ".HEIC"
    still = write(folder / f"{name}{suffix}", still_bytes(photo, kind=kind, exif=exif_block(identifier=identifier)))
    return still, write(folder / f"{name}.MOV", apple_movie(frames, identifier, **options))
