"""XMP packets made true of a single upright still.

A motion photo's XMP says that a video follows the picture, an Ultra HDR photo's that a gain map does. An output that
copies those claims without the appended data is broken for every viewer that believes them, so they are removed.
Sources: Google's Motion Photo format 1.0 and Ultra HDR image format 1.1; XMP part 1 (ISO 16684-1); Adobe's XMP part 3
for the extended packets of JPEG, which are not carried.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from xml.dom import minidom
from xml.parsers.expat import ExpatError, ParserCreate

_TIFF_NS = "http://ns.adobe.com/tiff/1.0/"
_GAIN_MAP_NS = "http://ns.adobe.com/hdr-gain-map/1.0/"
_NOTE_NS = "http://ns.adobe.com/xmp/note/"
_VENDOR_NAMES = frozenset({"OLivePhotoVersion", "VideoLength"})  # OPPO's and OnePlus's names beside Google's
_MARKS = re.compile(rb"Motion|MicroVideo|Directory|hdr-gain-map|HasExtendedXMP|OLivePhoto|VideoLength|Orientation")
_MAX_BYTES = 1 << 20
_MAX_ELEMENTS = 20_000
_MAX_DEPTH = 100  # cameras' packets are 6 to 10 deep; a tree is walked by recursion
_PACKET = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n{}\n<?xpacket end="w"?>'


def make_upright(xmp: bytes) -> bytes | None:
    """The packet without ``tiff:Orientation``; byte for byte the same if there is none, None if it cannot be parsed."""
    if b"Orientation" not in xmp and b"\0" not in xmp:
        return xmp
    return _without(xmp, _is_orientation)


def make_still(xmp: bytes) -> bytes | None:
    """The packet without orientation and without any claim of a video, gain map or other picture in the same file.

    Returns:
        The packet, byte for byte the same where it claims none of that; None if it cannot be parsed.
    """
    if not _MARKS.search(xmp) and b"\0" not in xmp:
        return xmp
    return _without(xmp, lambda space, name: _is_orientation(space, name) or _is_attachment(space, name))


def _is_orientation(space: str, name: str) -> bool:
    return space == _TIFF_NS and name == "Orientation"


def _is_attachment(space: str, name: str) -> bool:
    return (
        name.startswith(("MotionPhoto", "MicroVideo"))
        or name in _VENDOR_NAMES
        or (name == "Directory" and space.endswith("/container/"))
        or space == _GAIN_MAP_NS
        or (name == "HasExtendedXMP" and space == _NOTE_NS)
    )


def _without(xmp: bytes, unwanted: Callable[[str, str], bool]) -> bytes | None:
    """Remove properties, in both of RDF's spellings: attributes, and child elements."""
    document = parse(xmp)
    if document is None or document.documentElement is None:
        return None
    for element in document.getElementsByTagName("*"):
        for attribute in list(element.attributes.values()):
            if attribute.namespaceURI and unwanted(attribute.namespaceURI, attribute.localName):
                element.removeAttributeNode(attribute)
        for child in [node for node in element.childNodes if node.nodeType == node.ELEMENT_NODE]:
            if child.namespaceURI and unwanted(child.namespaceURI, child.localName):
                element.removeChild(child)
    body = document.documentElement.toxml()
    return wrap(body) if "<?xpacket" in _decode(xmp) else body.encode()


def wrap(body: str) -> bytes:
    """A tree's text in the processing instructions by which programs find a packet."""
    return _PACKET.format(body).encode()


def parse(xmp: bytes) -> minidom.Document | None:
    """A packet as a tree; ``None`` if it is malformed, or larger or deeper than any that cameras and editors write."""
    try:
        text = _decode(xmp).strip("\0\ufeff \t\r\n")
        if "<!DOCTYPE" in text:  # no XMP has one; entities are how XML bombs are made
            return None
        packet = text.encode()
        _check_bounds(packet)
        return minidom.parseString(packet)
    except (ExpatError, UnicodeError, ValueError):
        return None


def _check_bounds(packet: bytes) -> None:
    """Refuse a packet that no camera or editor writes, before a tree is made of it.

    Raises:
        ValueError: too long, too many elements, or nested too deep.
        ExpatError: malformed.
    """
    if len(packet) > _MAX_BYTES:
        raise ValueError("too long")
    depth = elements = 0

    def enter(_name: str, _attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth, elements = depth + 1, elements + 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            raise ValueError("nested too deep, or too many elements")

    def leave(_name: str) -> None:
        nonlocal depth
        depth -= 1

    parser = ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = enter, leave
    parser.Parse(packet, True)


def _decode(xmp: bytes) -> str:
    if xmp.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return xmp.decode("utf-16")
    if xmp[:1] == b"\0":
        return xmp.decode("utf-16-be")
    return xmp.decode("utf-16-le" if xmp[1:2] == b"\0" else "utf-8")
