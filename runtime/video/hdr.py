"""High dynamic range to the range of a photo: HLG and PQ in BT.2020 become Display P3 with sRGB's curve.

The base layer of Dolby Vision's profile 8.4, which iPhones write, is HLG; its dynamic metadata are not used. Colours
are mapped along lines through black (the largest channel decides the factor), so that neutral stays neutral and no hue
turns: what converters that bend each channel by itself get wrong is seen as a tint.

Sources: ITU-R BT.2100-2 (HLG's inverse OETF and OOTF for 1000 cd/m², PQ's EOTF); BT.2408-7 (203 cd/m² as the reference
white); SMPTE EG 432-1 and BT.2020-2 (primaries).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HDR_CURVES = {16: "PQ", 18: "HLG"}
"""H.273's transfer characteristics."""
_REFERENCE_WHITE_CDM2 = 203.0
_HLG_PEAK_CDM2 = 1000.0
_HLG_GAMMA = 1.2
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_KNEE = 0.7
"""Of the reference white: below it nothing is bent; 58 % of the photo's code values lie below."""
_PEAK = _HLG_PEAK_CDM2 / _REFERENCE_WHITE_CDM2
_STRIP_ROWS = 256

Floats = npt.NDArray[np.float32]


def hdr_to_p3(signal: Floats, transfer: int) -> npt.NDArray[np.uint8]:
    """Non-linear BT.2020 R'G'B' to Display P3.

    Args:
        signal: (H, W, 3), [0, 1] with overshoots; overwritten.
        transfer: 16 (PQ) or 18 (HLG), as in H.273.

    Returns:
        (H, W, 3) uint8.
    """
    result = np.empty(signal.shape, np.uint8)
    for top in range(0, len(signal), _STRIP_ROWS):
        rows = signal[top : top + _STRIP_ROWS]
        light = _pq_to_light(rows) if transfer == 16 else _hlg_to_light(rows)
        result[top : top + _STRIP_ROWS] = _to_codes(_compress(_to_p3(light)))
    return result


def wide_to_p3(signal: Floats) -> npt.NDArray[np.uint8]:
    """The same for BT.2020's primaries in standard dynamic range, whose curve is shown as sRGB's."""
    clipped = np.clip(signal, 0, 1)
    light = np.where(clipped <= 0.04045, clipped / 12.92, ((clipped + 0.055) / 1.055) ** 2.4)
    return _to_codes(np.clip(_to_p3(light.astype(np.float32)), 0, 1))


def _hlg_to_light(signal: Floats) -> Floats:
    """Display light, 1 at the reference white."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    e = np.clip(signal, 0, 1)
    scene = np.where(e <= 0.5, e * e / 3, (np.exp((e - c) / a) + b) / 12).astype(np.float32)
    luma = np.maximum(scene @ _BT2020_LUMA, 1e-6)
    gain = np.float32(_HLG_PEAK_CDM2 / _REFERENCE_WHITE_CDM2) * luma ** np.float32(_HLG_GAMMA - 1)
    return scene * gain[..., None]


def _pq_to_light(signal: Floats) -> Floats:
    """Display light, 1 at the reference white."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = np.clip(signal, 0, 1) ** np.float32(1 / m2)
    light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** np.float32(1 / m1)
    return (light * np.float32(10_000 / _REFERENCE_WHITE_CDM2)).astype(np.float32)


def _to_p3(light: Floats) -> Floats:
    """BT.2020's primaries to P3's, both with D65; what P3 cannot hold is drawn towards grey of the same luminance."""
    p3 = light @ _BT2020_TO_P3.T
    lowest = p3.min(axis=2)
    outside = lowest < 0
    if outside.any():
        grey = np.maximum((p3 @ _P3_LUMA)[outside], 0)
        share = grey / np.maximum(grey - lowest[outside], 1e-9)
        p3[outside] = grey[:, None] + (p3[outside] - grey[:, None]) * share[:, None]
    return p3


def _compress(light: Floats) -> Floats:
    """Light above the knee is bent to reach 1 at the peak, by the largest channel: hue and saturation stay.

    Reinhard's curve with a white point, above the knee: its slope is 1 there.
    """
    top = light.max(axis=2)
    bright = top > _KNEE
    if bright.any():
        room = 1 - _KNEE
        over, peak = (top[bright] - _KNEE) / room, (_PEAK - _KNEE) / room
        bent = _KNEE + room * np.minimum(over * (1 + over / peak**2) / (1 + over), 1)
        light[bright] *= (bent / top[bright])[:, None]
    return light


def _to_codes(light: Floats) -> npt.NDArray[np.uint8]:
    clipped = np.clip(light, 0, 1)
    coded = np.where(clipped <= 0.0031308, clipped * 12.92, 1.055 * clipped ** (1 / 2.4) - 0.055)
    return np.rint(coded * 255).astype(np.uint8)


def _to_xyz(primaries_xy: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """Linear RGB of three primaries and D65 to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries_xy]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


_P3_TO_XYZ = _to_xyz(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)))
_BT2020_TO_P3 = (np.linalg.inv(_P3_TO_XYZ) @ _to_xyz(((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)))).astype(
    np.float32
)
_P3_LUMA = _P3_TO_XYZ[1].astype(np.float32)
