"""The XMP of a photo that a gain map or a video follows in its file; with OPPO's names where the source had them.

Sources: Android's Motion Photo format 1.0 ("Motion Photo metadata", "HEIC-specific behavior") and its Ultra HDR image
format 1.1 ("Metadata").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.dom import minidom

from livemoments.runtime.image_files import xmp_packet
from livemoments.runtime.image_files.gain_map import SPACE as GAIN_MAP_SPACE
from livemoments.runtime.image_files.gain_map import VERSION as GAIN_MAP_VERSION
from livemoments.runtime.live_photo.claims import OPPO_SPACE

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_CONTAINER = "http://ns.google.com/photos/1.0/container/"
_ITEM = "http://ns.google.com/photos/1.0/container/item/"
_PREFIXES = {"GCamera": _CAMERA, "Container": _CONTAINER, "Item": _ITEM, "OpCamera": OPPO_SPACE}
_PREFIXES |= {"hdrgm": GAIN_MAP_SPACE}
_EMPTY = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""/></rdf:RDF>'
    "</x:xmpmeta>"
)


@dataclass(frozen=True, slots=True)
class VideoClaim:
    """What a packet says of the video in its file.

    Attributes:
        time_us: the still's instant in the video, in microseconds.
        mime: ``video/mp4`` or ``video/quicktime``.
        length: bytes.
        is_oppo: whether OPPO's and OnePlus's names are written too.
    """

    time_us: int
    mime: str
    length: int
    is_oppo: bool


def container_packet(
    xmp: bytes | None, *, photo_mime: str, padding: int = 0, gain_map_bytes: int = 0, video: VideoClaim | None = None
) -> bytes:
    """A packet that says what follows the photo in its file; what the photo's own packet says beside that stays.

    Args:
        xmp: the photo's packet, whose older claims are replaced.
        photo_mime: ``image/jpeg`` or ``image/heic``.
        padding: bytes between the photo's last byte and the next item's first.
        gain_map_bytes: the length of the gain map, a JPEG; 0: there is none.
        video: the video, which comes last; ``None``: there is none.
    """
    still = xmp_packet.make_still(xmp) if xmp else None
    document = xmp_packet.parse(still) if still else None
    found = _description(document) if document is not None else None
    if document is None or found is None:
        document = minidom.parseString(_EMPTY)
        found = _description(document)
    assert found is not None  # the empty packet has one
    values: list[tuple[str, str, object]] = []
    items = [(photo_mime, "Primary", 0, padding)]
    if gain_map_bytes:
        values.append(("hdrgm", "Version", GAIN_MAP_VERSION))
        items.append(("image/jpeg", "GainMap", gain_map_bytes, 0))
    if video is not None:
        values += _video_values(video)
        items.append((video.mime, "MotionPhoto", video.length, 0))
    for prefix in ("Container", "Item", *dict.fromkeys(prefix for prefix, _, _ in values)):
        found.setAttribute(f"xmlns:{prefix}", _PREFIXES[prefix])
    for prefix, name, value in values:
        found.setAttributeNS(_PREFIXES[prefix], f"{prefix}:{name}", str(value))
    found.appendChild(_directory(document, items))
    root = document.documentElement
    assert root is not None  # a parsed document has one
    return xmp_packet.wrap(root.toxml())


def _video_values(video: VideoClaim) -> Iterator[tuple[str, str, object]]:
    yield "GCamera", "MotionPhoto", 1
    yield "GCamera", "MotionPhotoVersion", 1
    yield "GCamera", "MotionPhotoPresentationTimestampUs", video.time_us
    if video.is_oppo:
        yield "OpCamera", "MotionPhotoPrimaryPresentationTimestampUs", video.time_us
        yield "OpCamera", "MotionPhotoOwner", "oplus"
        yield "OpCamera", "OLivePhotoVersion", 2
        yield "OpCamera", "VideoLength", video.length


def _description(document: minidom.Document) -> minidom.Element | None:
    return next(iter(document.getElementsByTagNameNS(_RDF, "Description")), None)


def _directory(document: minidom.Document, items: Iterable[tuple[str, str, int, int]]) -> minidom.Element:
    """The container's directory of (type, meaning, length, padding)."""
    directory = document.createElementNS(_CONTAINER, "Container:Directory")
    sequence = document.createElementNS(_RDF, "rdf:Seq")
    directory.appendChild(sequence)
    for mime, semantic, length, pad in items:
        line = document.createElementNS(_RDF, "rdf:li")
        line.setAttributeNS(_RDF, "rdf:parseType", "Resource")
        item = document.createElementNS(_CONTAINER, "Container:Item")
        for name, value in (("Mime", mime), ("Semantic", semantic), ("Length", length), ("Padding", pad)):
            item.setAttributeNS(_ITEM, f"Item:{name}", str(value))
        line.appendChild(item)
        sequence.appendChild(line)
    return directory
