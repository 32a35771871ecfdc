"""HDR video to a photo's range: neutral stays neutral, order stays, hues stay; against the standards' formulas."""

from __future__ import annotations

import os

import numpy as np
import pytest

from livemoments.runtime.video.hdr import hdr_to_p3, wide_to_p3

RNG = np.random.default_rng(int.from_bytes(os.urandom(4), "big"))
PQ, HLG = 16, 18
BT2020_TO_XYZ = np.array([[0.6370, 0.1446, 0.1689], [0.2627, 0.6780, 0.0593], [0.0000, 0.0281, 1.0610]])  # BT.2020-2
P3_TO_XYZ = np.array([[0.4866, 0.2657, 0.1982], [0.2290, 0.6917, 0.0793], [0.0000, 0.0451, 1.0439]])  # EG 432-1, D65


def hlg_signal(scene: np.ndarray) -> np.ndarray:
    """BT.2100's OETF, table 5, written from the text."""
    scene = np.asarray(scene, float)
    bright = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


def pq_signal(nits: np.ndarray) -> np.ndarray:
    """BT.2100's inverse EOTF of PQ, table 4."""
    y = np.asarray(nits, float) / 10_000
    power = y ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def light(codes: np.ndarray) -> np.ndarray:
    """sRGB's curve undone."""
    unit = codes / 255
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_grey_has_no_tint_and_keeps_its_order(transfer: int) -> None:
    """immich-video-memory-generator 66: HLG shown as if it were BT.709, or bent channel by channel, has a cast."""
    levels = np.sort(RNG.uniform(0, 1, 200)).astype(np.float32)
    result = hdr_to_p3(np.repeat(levels[None, :, None], 3, axis=2), transfer)[0]
    assert (np.ptp(result.astype(int), axis=1) <= 1).all()
    assert (np.diff(result[:, 0].astype(int)) >= 0).all()
    assert result[-1, 0] <= 255
    assert hdr_to_p3(np.zeros((1, 1, 3), np.float32), transfer).max() == 0


def test_pq_below_the_knee_is_light_relative_to_203_nits() -> None:
    nits = RNG.uniform(1, 140, 100)
    signal = np.repeat(pq_signal(nits)[None, :, None], 3, axis=2).astype(np.float32)
    assert np.allclose(light(hdr_to_p3(signal, PQ))[0, :, 1], nits / 203, rtol=0.02, atol=0.002)


def test_hlg_below_the_knee_is_light_relative_to_203_nits() -> None:
    """Grey: display light is 1000 · E^1.2 cd/m² for scene light E (BT.2100, table 5)."""
    scene = RNG.uniform(0.002, 0.19, 100)
    signal = np.repeat(hlg_signal(scene)[None, :, None], 3, axis=2).astype(np.float32)
    assert np.allclose(light(hdr_to_p3(signal, HLG))[0, :, 1], 1000 * scene**1.2 / 203, rtol=0.02, atol=0.002)


def test_highlights_are_bent_not_cut() -> None:
    nits = np.linspace(150, 1000, 40)
    codes = hdr_to_p3(np.repeat(pq_signal(nits)[None, :, None], 3, axis=2).astype(np.float32), PQ)[0, :, 0]
    assert codes[-1] > codes[len(codes) // 2] > codes[0]
    assert (codes[: len(codes) // 2] < 255).all()


def test_colours_inside_p3_are_those_of_the_matrices() -> None:
    p3 = RNG.uniform(0.05, 0.6, (50, 3))
    nits = 203 * p3 @ (np.linalg.inv(BT2020_TO_XYZ) @ P3_TO_XYZ).T
    result = light(hdr_to_p3(pq_signal(nits)[None].astype(np.float32), PQ))[0]
    assert np.allclose(result, p3, rtol=0.03, atol=0.004)


def test_a_bright_colour_keeps_its_hue() -> None:
    """Bent channel by channel, orange turns to yellow: the ratio of its channels changes."""
    p3 = np.array([0.6, 0.3, 0.12])
    strong = 203 * 2.5 * p3 @ (np.linalg.inv(BT2020_TO_XYZ) @ P3_TO_XYZ).T
    result = light(hdr_to_p3(pq_signal(strong)[None, None].astype(np.float32), PQ))[0, 0]
    assert result[1] / result[0] == pytest.approx(0.5, abs=0.03)
    assert result[2] / result[0] == pytest.approx(0.2, abs=0.03)
    each = np.clip(2.5 * p3, 0, 1)  # what a converter does that cuts each channel by itself
    assert abs(each[1] / each[0] - 0.5) > 0.1


def test_hlg_shown_as_if_it_were_sdr_is_too_dark_in_the_middle() -> None:
    """What a reader without tone mapping shows: HLG's codes as they are."""
    signal = hlg_signal(np.array([0.26]))  # BT.2408's diffuse white
    shown = hdr_to_p3(np.full((1, 1, 3), signal[0], np.float32), HLG)[0, 0, 0]
    assert shown / 255 > signal[0] + 0.1


def test_colours_outside_p3_lose_saturation_not_hue() -> None:
    """Pure BT.2020 green is outside: no channel may be cut off to a plateau that hides detail."""
    green = np.zeros((1, 2, 3), np.float32)
    green[..., 1] = pq_signal(np.array([20.0, 60.0]))
    result = hdr_to_p3(green, PQ)[0].astype(int)
    assert (result[:, 1] > result[:, 0]).all()
    assert (result[:, 1] > result[:, 2]).all()
    assert result[1, 1] > result[0, 1]


def test_wide_primaries_without_hdr() -> None:
    grey = np.full((1, 1, 3), 0.5, np.float32)
    assert np.abs(wide_to_p3(grey).astype(int) - 128).max() <= 1
    red = wide_to_p3(np.array([[[0.6, 0.2, 0.2]]], np.float32))[0, 0].astype(int)
    assert red[0] > 153  # the same colour needs more of P3's weaker red
