"""Gain maps of HDR photos in JPEG: how much brighter than the standard picture each place is on an HDR display.

A file holds the standard picture, then the map as a picture of its own whose metadata say what its values mean. Read
are Adobe's names in XMP (Android's Ultra HDR) and ISO 21496-1's block (Android, and Apple since iOS 18); both are
written. Apple's older maps state their range in a maker note that is not documented, and are not read.
Sources: Ultra HDR image format 1.1; Adobe's gain map specification 1.0; ISO 21496-1:2025, annex C.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin

from livemoments.pixel_limit import max_pixels
from livemoments.runtime.image_files import xmp_packet
from livemoments.runtime.image_files.decode import orientation_of, pillow_limit_off, turn
from livemoments.runtime.image_files.jpeg_segments import XMP_PREFIX, insert_segments, other_pictures, segment

ISO_PREFIX = b"urn:iso:std:iso:ts:21496:-1\0"
SPACE = "http://ns.adobe.com/hdr-gain-map/1.0/"
VERSION = "1.0"
_MULTI_CHANNEL, _USE_BASE_COLOURS, _COMMON_DENOMINATOR, _BACKWARD = 1 << 7, 1 << 6, 1 << 3, 1 << 2
_DENOMINATOR = 1 << 20
_QUALITY = 90
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"

Channels = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class GainMap:
    """A gain map; the photo's pixels p, linear, become ``(p + offset) * 2 ** gain - offset_hdr``.

    Attributes:
        pixels: (h, w) or (h, w, 3) uint8; v / 255 to the power of 1 / gamma goes from ``low`` to ``high``.
        low, high: the gain of the values 0 and 255, in powers of two, for red, green and blue.
        gamma: of the values.
        offset, offset_hdr: added before, subtracted after.
        headroom, headroom_hdr: of the display, in powers of two, from which the map is applied, and from which wholly.
    """

    pixels: npt.NDArray[np.uint8]
    low: Channels
    high: Channels
    gamma: Channels = (1.0, 1.0, 1.0)
    offset: Channels = (1 / 64, 1 / 64, 1 / 64)
    offset_hdr: Channels = (1 / 64, 1 / 64, 1 / 64)
    headroom: float = 0.0
    headroom_hdr: float = 1.0


def read_gain_map(data: bytes, extra_places: Sequence[tuple[int, int]] = ()) -> GainMap | None:
    """The gain map in a JPEG file, upright as its photo.

    Args:
        data: the whole file.
        extra_places: where else a picture may lie (start, end), for files whose multi-picture index is missing.

    Returns:
        The map; ``None`` where there is none, one of a kind that is not read, one whose photo is the HDR rendition, or
        a damaged one.
    """
    try:
        with pillow_limit_off(), Image.open(io.BytesIO(data)) as photo:
            if not isinstance(photo, JpegImagePlugin.JpegImageFile):
                return None
            orientation = orientation_of(photo)
        for start, end in (*other_pictures(data), *extra_places):
            if 0 < start < end <= len(data) and data[start : start + 2] == b"\xff\xd8":
                with Image.open(io.BytesIO(data[start:end])) as picture:
                    found = _read(picture, orientation)
                if found is not None:
                    return found
    except (OSError, ValueError, SyntaxError, KeyError, EOFError, struct.error, ZeroDivisionError, OverflowError):
        return None
    return None


def _read(picture: Any, orientation: int) -> GainMap | None:
    values = _iso_values(picture.applist) or _xmp_values(picture.applist)
    if values is None or picture.width * picture.height > max_pixels.get():
        return None
    numbers = [*values["low"], *values["high"], *values["offset"], *values["offset_hdr"], values["headroom_hdr"]]
    if not all(map(math.isfinite, numbers)) or not all(gamma > 0 for gamma in values["gamma"]):
        return None
    pixels = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"), np.uint8)
    upright = turn(np.atleast_3d(pixels), orientation)
    return GainMap(upright.reshape(*upright.shape[:2], *pixels.shape[2:]), **values)


def _iso_values(segments: Sequence[tuple[str, bytes]]) -> dict[str, Any] | None:
    block = next((body for name, body in segments if name == "APP2" and body.startswith(ISO_PREFIX)), None)
    if block is None or len(block) < len(ISO_PREFIX) + 5:
        return None
    at = len(ISO_PREFIX)
    version, _, flags = struct.unpack_from(">HHB", block, at)
    if version != 0 or flags & _BACKWARD:
        return None
    at += 5
    is_common = bool(flags & _COMMON_DENOMINATOR)
    if is_common:
        (denominator,) = struct.unpack_from(">I", block, at)
        at += 4

    def number(kind: str) -> float:
        nonlocal at
        (numerator,) = struct.unpack_from(">" + kind, block, at)
        at += 4
        if is_common:
            return numerator / denominator
        (below,) = struct.unpack_from(">I", block, at)
        at += 4
        return numerator / below

    headroom, headroom_hdr = number("I"), number("I")
    count = 3 if flags & _MULTI_CHANNEL else 1
    channels = [tuple(number(kind) for kind in "iiIii") for _ in range(count)]
    low, high, gamma, offset, offset_hdr = zip(*(channels * (3 // count)), strict=True)
    found = {"low": low, "high": high, "gamma": gamma, "offset": offset, "offset_hdr": offset_hdr}
    return found | {"headroom": headroom, "headroom_hdr": headroom_hdr}


def _xmp_values(segments: Sequence[tuple[str, bytes]]) -> dict[str, Any] | None:
    packet = next((body for name, body in segments if name == "APP1" and body.startswith(XMP_PREFIX)), None)
    document = None if packet is None else xmp_packet.parse(packet[len(XMP_PREFIX) :])
    if document is None:
        return None
    found: dict[str, list[str]] = {}
    for element in document.getElementsByTagName("*"):
        for attribute in element.attributes.values():
            if attribute.namespaceURI == SPACE:
                found[attribute.localName or ""] = [attribute.value]
        if element.namespaceURI == SPACE:
            items = element.getElementsByTagNameNS(_RDF, "li") or [element]
            texts = [
                "".join(node.data for node in item.childNodes if node.nodeType == node.TEXT_NODE) for item in items
            ]
            found[element.localName or ""] = texts
    if "Version" not in found or found.get("BaseRenditionIsHDR", ["False"])[0].strip().lower() == "true":
        return None

    def channels(name: str, default: float | None) -> Channels:
        texts = found.get(name)
        if texts is None:
            if default is None:
                raise KeyError(name)
            return (default,) * 3
        red, green, blue = (float(text) for text in (texts if len(texts) == 3 else texts[:1] * 3))
        return red, green, blue

    return {
        "low": channels("GainMapMin", 0.0),
        "high": channels("GainMapMax", None),
        "gamma": channels("Gamma", 1.0),
        "offset": channels("OffsetSDR", 1 / 64),
        "offset_hdr": channels("OffsetHDR", 1 / 64),
        "headroom": channels("HDRCapacityMin", 0.0)[0],
        "headroom_hdr": channels("HDRCapacityMax", None)[0],
    }


def encode_gain_map(gain: GainMap) -> bytes:
    """The map as the JPEG that follows its photo, with both kinds of metadata."""
    stream = io.BytesIO()
    Image.fromarray(gain.pixels).save(stream, "JPEG", quality=_QUALITY, xmp=_packet(gain))
    return insert_segments(stream.getvalue(), [segment(0xE2, ISO_PREFIX + _iso_block(gain))])


def _iso_block(gain: GainMap) -> bytes:
    def number(value: float, kind: str) -> bytes:
        fraction = Fraction(value).limit_denominator(_DENOMINATOR)
        return struct.pack(f">{kind}I", fraction.numerator, fraction.denominator)

    block = struct.pack(">HHB", 0, 0, _MULTI_CHANNEL | _USE_BASE_COLOURS)
    block += number(gain.headroom, "I") + number(gain.headroom_hdr, "I")
    for values in zip(gain.low, gain.high, gain.gamma, gain.offset, gain.offset_hdr, strict=True):
        block += b"".join(number(value, kind) for value, kind in zip(values, "iiIii", strict=True))
    return block


def _packet(gain: GainMap) -> bytes:
    def sequence(name: str, values: Channels) -> str:
        items = "".join(f"<rdf:li>{value!r}</rdf:li>" for value in values)
        return f"<hdrgm:{name}><rdf:Seq>{items}</rdf:Seq></hdrgm:{name}>"

    per_channel = {
        "GainMapMin": gain.low,
        "GainMapMax": gain.high,
        "Gamma": gain.gamma,
        "OffsetSDR": gain.offset,
        "OffsetHDR": gain.offset_hdr,
    }
    attributes = f'hdrgm:Version="{VERSION}" hdrgm:HDRCapacityMin="{gain.headroom!r}" '
    attributes += f'hdrgm:HDRCapacityMax="{gain.headroom_hdr!r}" hdrgm:BaseRenditionIsHDR="False"'
    return xmp_packet.wrap(
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" '
        f'xmlns:hdrgm="{SPACE}" {attributes}>{"".join(sequence(*entry) for entry in per_channel.items())}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
