"""What a photo's XMP says of the video in its file: Google's Motion Photo, the older MicroVideo, OPPO's additions.

Numbers are taken as claims: phones and the tools behind them write wrong ones.
Sources: Android's Motion Photo format 1.0; Google Camera's MicroVideo (XMP of Pixels up to Android 10); OPPO's and
OnePlus's ``OpCamera`` names as their phones write them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.dom import minidom

from livemoments.runtime.image_files import xmp_packet
from livemoments.runtime.image_files.gain_map import SPACE as _GAIN_MAP_SPACE

_GAIN_MAP_SEMANTIC = "GainMap"
VIDEO_SEMANTIC = "MotionPhoto"
OPPO_SPACE = "http://ns.oplus.com/photos/1.0/camera/"
_MAX_ITEMS = 64
_MICROSECONDS = 1_000_000
_MAX_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the container's directory.

    Attributes:
        semantic: what it is: ``Primary``, ``GainMap``, ``MotionPhoto``.
        mime: its type.
        length: bytes; ``None`` where it is missing or no number. Of the primary item it may be missing or 0.
        padding: bytes behind it.
    """

    semantic: str
    mime: str
    length: int | None
    padding: int


@dataclass(frozen=True, slots=True)
class Claims:
    """What the XMP says.

    Attributes:
        is_motion: whether it calls the file a Motion Photo or a MicroVideo.
        time_s: the still's instant in the video; ``None`` where it is missing or marked as unknown (-1).
        items: the container's directory, in the order of the file.
        micro_offset: MicroVideo's distance of the video from the file's end, in bytes.
        video_length: OPPO's length of the video, in bytes.
        is_oppo: whether OPPO's names are there.
        has_gain_map: whether the photo is an Ultra HDR one.
    """

    is_motion: bool
    time_s: float | None = None
    items: tuple[Item, ...] = ()
    micro_offset: int | None = None
    video_length: int | None = None
    is_oppo: bool = False
    has_gain_map: bool = False

    def gain_map_place(self, file_bytes: int) -> tuple[int, int] | None:
        """Where in a file of that length the container's directory puts the gain map: start and end."""
        for index, item in enumerate(self.items):
            if item.semantic == _GAIN_MAP_SEMANTIC and item.length:
                behind = sum((entry.length or 0) + entry.padding for entry in self.items[index + 1 :])
                end = file_bytes - behind - item.padding
                return end - item.length, end
        return None

    def offsets_from_end(self) -> Iterator[tuple[str, int]]:
        """Where the video may begin, in bytes before the file's end, the most trusted first, and what says so."""
        for index, item in enumerate(self.items):
            if item.semantic != VIDEO_SEMANTIC and not item.mime.startswith("video/"):
                continue
            following = self.items[index + 1 :]
            if item.length:
                behind = sum((entry.length or 0) + entry.padding for entry in following)
                yield "XMP container", item.length + item.padding + behind
                if item.padding or behind:
                    yield "XMP container", item.length
        if self.micro_offset:
            yield "XMP MicroVideoOffset", self.micro_offset
        if self.video_length:
            yield "XMP VideoLength", self.video_length


def read_claims(xmp: bytes | None) -> Claims:
    """Read a packet; what is nonsense in it counts as missing."""
    document = xmp_packet.parse(xmp) if xmp else None
    if document is None:
        return Claims(False)
    found: dict[str, str] = {}
    spaces: set[str] = set()
    items: list[Item] = []
    for element in document.getElementsByTagName("*"):
        for space, name, value in _properties(element):
            spaces.add(space)
            found.setdefault(name, value)
        if _is_item(element) and len(items) < _MAX_ITEMS:
            items.append(_item(element))
    micro = _flag(found.get("MicroVideo"))
    time = found.get("MotionPhotoPresentationTimestampUs")
    if time is None:
        time = found.get("MicroVideoPresentationTimestampUs")
    microseconds = _whole(time)
    return Claims(
        is_motion=micro or _flag(found.get("MotionPhoto")),
        time_s=None if microseconds is None else microseconds / _MICROSECONDS,
        items=tuple(items),
        micro_offset=_whole(found.get("MicroVideoOffset")) or None,
        video_length=_whole(found.get("VideoLength")) or None,
        is_oppo=OPPO_SPACE in spaces,
        has_gain_map=_GAIN_MAP_SPACE in spaces or any(item.semantic == _GAIN_MAP_SEMANTIC for item in items),
    )


def _properties(element: minidom.Element) -> Iterator[tuple[str, str, str]]:
    """Namespace, name and value in both of RDF's spellings: attributes, and elements that hold text only."""
    for attribute in element.attributes.values():
        if attribute.namespaceURI and attribute.localName:
            yield attribute.namespaceURI, attribute.localName, attribute.value
    if element.namespaceURI and element.localName and len(element.childNodes) == 1:
        (child,) = element.childNodes
        if child.nodeType == child.TEXT_NODE:
            yield element.namespaceURI, element.localName, child.data


def _is_item(element: minidom.Element) -> bool:
    return element.localName == "Item" and (element.namespaceURI or "").endswith("/container/")


def _item(element: minidom.Element) -> Item:
    values = {name: value for _, name, value in _properties(element)}
    for child in element.getElementsByTagName("*"):
        values |= {name: value for _, name, value in _properties(child)}
    return Item(
        semantic=values.get("Semantic", ""),
        mime=values.get("Mime", ""),
        length=_whole(values.get("Length")),
        padding=_whole(values.get("Padding")) or 0,
    )


def _flag(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("1", "true")


def _whole(value: str | None) -> int | None:
    """A number of bytes or microseconds; ``None`` for nonsense and for -1, which means unknown."""
    text = (value or "").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        return None
    number = int(text)
    return number if number <= _MAX_BYTES else None
