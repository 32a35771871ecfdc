"""The XMP of a Motion Photo that is written: Google's names, and OPPO's where the source had them.

Source: Android's Motion Photo format 1.0 ("Motion Photo metadata", "HEIC-specific behavior").
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.dom import minidom

from livemoments.runtime.image_files import xmp_packet
from livemoments.runtime.live_photo.claims import OPPO_SPACE

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_CONTAINER = "http://ns.google.com/photos/1.0/container/"
_ITEM = "http://ns.google.com/photos/1.0/container/item/"
_PREFIXES = {"GCamera": _CAMERA, "Container": _CONTAINER, "Item": _ITEM, "OpCamera": OPPO_SPACE}
_EMPTY = (
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about=""/></rdf:RDF>'
    "</x:xmpmeta>"
)


def motion_packet(
    xmp: bytes | None,
    *,
    time_us: int,
    photo_mime: str,
    padding: int,
    video_mime: str,
    video_bytes: int,
    is_oppo: bool,
) -> bytes:
    """A packet that says where the video lies; what the photo's own packet says beside that stays.

    Args:
        xmp: the photo's packet, whose older claims are replaced.
        time_us: the still's instant in the video, in microseconds.
        photo_mime: ``image/jpeg`` or ``image/heic``.
        padding: bytes between the photo's last byte and the video's first.
        video_mime: ``video/mp4`` or ``video/quicktime``.
        video_bytes: the video's length.
        is_oppo: whether OPPO's and OnePlus's names are written too.
    """
    still = xmp_packet.make_still(xmp) if xmp else None
    document = xmp_packet.parse(still) if still else None
    found = _description(document) if document is not None else None
    if document is None or found is None:
        document = minidom.parseString(_EMPTY)
        found = _description(document)
    assert found is not None  # the empty packet has one
    for prefix, space in _PREFIXES.items():
        if is_oppo or space != OPPO_SPACE:
            found.setAttribute(f"xmlns:{prefix}", space)
    values: dict[str, object] = {
        "MotionPhoto": 1,
        "MotionPhotoVersion": 1,
        "MotionPhotoPresentationTimestampUs": time_us,
    }
    for name, value in values.items():
        found.setAttributeNS(_CAMERA, f"GCamera:{name}", str(value))
    if is_oppo:
        oppo: dict[str, object] = {"MotionPhotoPrimaryPresentationTimestampUs": time_us, "MotionPhotoOwner": "oplus"}
        for name, value in (oppo | {"OLivePhotoVersion": 2, "VideoLength": video_bytes}).items():
            found.setAttributeNS(OPPO_SPACE, f"OpCamera:{name}", str(value))
    items = ((photo_mime, "Primary", 0, padding), (video_mime, "MotionPhoto", video_bytes, 0))
    found.appendChild(_directory(document, items))
    root = document.documentElement
    assert root is not None  # a parsed document has one
    return xmp_packet.wrap(root.toxml())


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
