"""ICC profiles made by hand: version 2, matrix and tone curve (ICC.1:2001-04)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_D50 = (0.9642, 1.0, 0.8249)
SRGB_COLORANTS = ((0.43604, 0.22249, 0.01392), (0.38512, 0.71690, 0.09706), (0.14305, 0.06061, 0.71391))
P3_COLORANTS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""XYZ of red, green and blue, adapted to D50, as in Apple's Display P3 profile."""


def rgb_profile(
    colorants: Sequence[Sequence[float]] = P3_COLORANTS, gamma: float = 2.2, name: str = "P3-like"
) -> bytes:
    """An RGB display profile.

    Args:
        colorants: XYZ of red, green and blue under D50.
        gamma: of all three channels.
        name: its description.
    """
    tags = {b"r": colorants[0], b"g": colorants[1], b"b": colorants[2]}
    body = {channel + b"XYZ": _xyz(values) for channel, values in tags.items()}
    body |= {channel + b"TRC": _curve(gamma) for channel in tags}
    return _profile(b"RGB ", body, name)


def grey_profile(gamma: float) -> bytes:
    """A grey display profile."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)}, "grey")


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)


def _profile(space: bytes, body: dict[bytes, bytes], name: str) -> bytes:
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode() + b"\0" + bytes(78)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": _xyz(_D50),
        **body,
    }
    at = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for signature, content in tags.items():
        table += signature + struct.pack(">II", at + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + _xyz(_D50)[8:]
    return head.ljust(128, b"\0") + table + data
