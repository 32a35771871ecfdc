"""Colour spaces that are stated without an ICC profile: coding points of PNG's cICP and HEIC's nclx, and EXIF's way to
say Adobe RGB; as the profile that they stand for.

Sources: ITU-T H.273 (coding points); Display P3 (Apple: P3's primaries, D65, sRGB's curve); Adobe RGB (1998), 4.3;
ICC.1:2010 (profiles); Exif 2.32 and DCF 2.0 (ColorSpace, interoperability index R03).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_SRGB_PRIMARIES, _P3_PRIMARIES = 1, 12
_SRGB_CURVES = (1, 13)
"""BT.709's and sRGB's: still pictures marked with the former are encoded for the latter's displays."""
_HDR_CURVES = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = 2

_D65_XY = (0.3127, 0.3290)
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_P3_XY = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_ADOBE_XY = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_ADOBE_GAMMA = (563 / 256,)


class ColourCodeError(ValueError):
    """Coding points that this project cannot honour, in words."""


def profile_of_codes(primaries: int, transfer: int) -> bytes | None:
    """The ICC profile that H.273's coding points stand for; ``None``: sRGB.

    Raises:
        ColourCodeError: HDR (PQ, HLG), or another space than sRGB and Display P3.
    """
    if transfer in _HDR_CURVES:
        raise ColourCodeError(f"holds HDR ({_HDR_CURVES[transfer]})")
    if primaries == _UNSPECIFIED and transfer in (*_SRGB_CURVES, _UNSPECIFIED):
        return None
    if transfer in (*_SRGB_CURVES, _UNSPECIFIED):
        if primaries == _SRGB_PRIMARIES:
            return None
        if primaries == _P3_PRIMARIES:
            return display_p3()
    space = f"primaries {primaries}, transfer {transfer} of H.273"
    raise ColourCodeError(f"is in a colour space that is neither sRGB nor Display P3 ({space})")


def display_p3() -> bytes:
    """Display P3 as an ICC profile."""
    return _profile("Display P3", _P3_XY, _SRGB_CURVE)


def adobe_rgb() -> bytes:
    """Adobe RGB (1998) as an ICC profile of our own making."""
    return _profile("Compatible with Adobe RGB (1998)", _ADOBE_XY, _ADOBE_GAMMA)


def _profile(name: str, primaries_xy: Sequence[tuple[float, float]], curve: Sequence[float]) -> bytes:
    """A version 4 display profile of three primaries and one parametric curve, for the white point D65."""
    white = _xyz(*_D65_XY)
    columns = np.stack([_xyz(*xy) for xy in primaries_xy], axis=1)
    columns = columns * np.linalg.solve(columns, white)
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white)) @ _BRADFORD
    red, green, blue = (adapt @ columns).T
    kind = 0 if len(curve) == 1 else 3
    response = b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + _fixed(curve)
    tags = {
        b"desc": _text(name),
        b"cprt": _text("No copyright, use freely"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(_D50_XYZ),
        b"chad": b"sf32\0\0\0\0" + _fixed(adapt.ravel()),
        b"rXYZ": b"XYZ \0\0\0\0" + _fixed(red),
        b"gXYZ": b"XYZ \0\0\0\0" + _fixed(green),
        b"bXYZ": b"XYZ \0\0\0\0" + _fixed(blue),
        b"rTRC": response,
        b"gTRC": response,
        b"bTRC": response,
    }
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(value))
        body += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s", at + len(body), 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + _fixed(_D50_XYZ)
    return head.ljust(128, b"\0") + table + body


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(values: Sequence[float] | np.ndarray) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _text(text: str) -> bytes:
    coded = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(coded), 28) + coded
