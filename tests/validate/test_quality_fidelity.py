"""PSNR, SSIM and MS-SSIM on y against independent implementations, in strips, at every depth."""

from __future__ import annotations

import math
import sys

import cv2
import numpy as np
import pytest
from iqa_support import degraded, picture, piq_modules

from livemoments.errors import UsageError
from livemoments.validate.cost.fresh_process import measure_process
from livemoments.validate.quality import luma as luma_module
from livemoments.validate.quality.fidelity import FIDELITY, measure_fidelity, psnr_y
from livemoments.validate.quality.luma import Luma, luma_of
from livemoments.validate.quality.ms_ssim import MultiScaleSimilarity
from livemoments.validate.quality.ssim import Similarity

AGREEMENT = 1e-4


def plain_y(pixels: np.ndarray, luma: Luma = Luma.BT601_STUDIO) -> np.ndarray:
    """y in float64, from the definition."""
    top = 1.0 if np.issubdtype(pixels.dtype, np.floating) else float(np.iinfo(pixels.dtype).max)
    r, g, b = np.moveaxis(pixels.astype(np.float64) / top, -1, 0)
    if luma is Luma.BT601_FULL:
        return 255 * (0.299 * r + 0.587 * g + 0.114 * b)
    return 16 + 65.481 * r + 128.553 * g + 24.966 * b


def piq_value(metric: str, value: np.ndarray, reference: np.ndarray, **options: object) -> float:
    import torch

    planes = [torch.from_numpy(plain_y(pixels).astype(np.float32))[None, None] for pixels in (value, reference)]
    with piq_modules("ssim", "ms_ssim") as (ssim, ms_ssim):
        function = {"ssim": ssim.ssim, "ms_ssim": ms_ssim.multi_scale_ssim}[metric]
        return float(function(*planes, data_range=255, **options))


# Even and odd sides, more than one strip, a last strip of few rows
SIZES = [(161, 173), (200, 162), (333, 256), (560, 1021)]


@pytest.mark.parametrize("size", SIZES)
def test_all_three_agree_with_scikit_image_and_piq(size: tuple[int, int]) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    seed = int(np.random.default_rng().integers(1 << 30))  # other pictures at every run
    print("seed", seed)
    reference = picture(*size, seed=seed)
    other = cv2.addWeighted(reference, 0.5, picture(*size, seed=seed + 1), 0.5, 0)  # differs at coarse scales too
    value = degraded(other, seed=seed % 1000)
    found = measure_fidelity(value, reference)
    planes = plain_y(reference), plain_y(value)
    assert found["psnr_y"] == pytest.approx(peak_signal_noise_ratio(*planes, data_range=255), abs=AGREEMENT)
    structural = structural_similarity(
        *planes, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert found["ssim_y"] == pytest.approx(structural, abs=AGREEMENT)
    assert found["ssim_y"] == pytest.approx(piq_value("ssim", value, reference, downsample=False), abs=AGREEMENT)
    assert found["ms_ssim_y"] == pytest.approx(piq_value("ms_ssim", value, reference), abs=AGREEMENT)
    assert 0.2 < structural < 0.98  # a comparison near 0 or 1 would prove little


@pytest.mark.parametrize("luma", list(Luma))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_every_depth_and_convention(dtype: type, luma: Luma) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    reference = picture(170, 190, seed=3, dtype=dtype)
    value = degraded(reference, seed=4)
    np.testing.assert_allclose(luma_of(value, luma), plain_y(value, luma), atol=1e-4)
    expected = peak_signal_noise_ratio(plain_y(reference, luma), plain_y(value, luma), data_range=255)
    assert psnr_y(value, reference, luma) == pytest.approx(expected, abs=AGREEMENT)


def test_the_conventions_differ_by_the_range_of_studio_levels() -> None:
    reference = picture(64, 64, seed=5)
    value = degraded(reference, seed=6)
    gap = psnr_y(value, reference, Luma.BT601_STUDIO) - psnr_y(value, reference, Luma.BT601_FULL)
    assert gap == pytest.approx(20 * math.log10(255 / 219), abs=0.01)
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert [float(luma_of(pixel)[0, 0]) for pixel in (black, white)] == [16.0, pytest.approx(235.0)]
    assert [float(luma_of(pixel, Luma.BT601_FULL)[0, 0]) for pixel in (black, white)] == [0.0, pytest.approx(255.0)]


def test_equal_pictures_are_exactly_equal() -> None:
    for dtype in (np.uint8, np.uint16):
        pixels = picture(300, 171, seed=7, dtype=dtype)
        assert measure_fidelity(pixels, pixels.copy()) == {"psnr_y": math.inf, "ssim_y": 1.0, "ms_ssim_y": 1.0}
    white = np.full((200, 200, 3), 65535, np.uint16)
    assert measure_fidelity(white, white) == {"psnr_y": math.inf, "ssim_y": 1.0, "ms_ssim_y": 1.0}


def test_one_level_in_one_pixel_is_seen() -> None:
    pixels = picture(300, 300, seed=8)
    other = pixels.copy()
    other[123, 45, 2] ^= 1  # blue, the least weight
    found = measure_fidelity(other, pixels)
    assert found["psnr_y"] == pytest.approx(10 * math.log10(255**2 * 300 * 300 / (24.966 / 255) ** 2), abs=1e-3)
    assert 0 < 1 - found["ssim_y"] < 1e-6  # type: ignore[operator]


@pytest.mark.parametrize("strip_rows", [64, 77, 100_000])
def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch, strip_rows: int) -> None:
    reference = picture(397, 211, seed=9)
    value = degraded(reference, seed=10)
    whole = measure_fidelity(value, reference)
    monkeypatch.setattr(luma_module, "STRIP_PX", strip_rows * 211)
    monkeypatch.setattr(luma_module, "_LEAST_STRIP_ROWS", 1)
    assert measure_fidelity(value, reference) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_strips_of_few_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    reference = picture(187, 165, seed=11)
    value = degraded(reference, seed=12)
    whole = measure_fidelity(value, reference)
    monkeypatch.setattr(luma_module, "STRIP_PX", rows * 165)
    monkeypatch.setattr(luma_module, "_LEAST_STRIP_ROWS", rows)
    assert measure_fidelity(value, reference) == pytest.approx(whole, abs=1e-9)


def test_single_metrics_are_the_same_as_all_together() -> None:
    reference = picture(181, 240, seed=13)
    value = degraded(reference, seed=14)
    together = measure_fidelity(value, reference)
    for name in FIDELITY:
        assert measure_fidelity(value, reference, [name]) == {name: together[name]}
    assert psnr_y(value, reference) == together["psnr_y"]


def test_memory_does_not_grow_with_the_picture() -> None:
    """Of fresh processes: beyond the pictures themselves, eight times the rows cost next to nothing."""
    code = (
        "import sys, numpy as np\n"
        "from livemoments.validate.quality.fidelity import measure_fidelity\n"
        "a = np.random.default_rng(0).integers(0, 256, (int(sys.argv[1]), 1000, 3), np.uint8)\n"
        "b = a ^ 1\n"
        "assert len(measure_fidelity(a, b)) == 3\n"
    )
    peaks = {}
    for rows in (1000, 8000):
        cost = measure_process([sys.executable, "-c", code, str(rows)])
        assert cost.returncode == 0, cost.stderr
        peaks[rows] = cost.peak_rss_bytes
    pictures = 2 * 7000 * 1000 * 3
    assert peaks[8000] - peaks[1000] < pictures + 8_000_000


def test_opposite_pictures_give_no_similarity() -> None:
    pixels = np.random.default_rng(15).integers(0, 256, (200, 200, 3), np.uint8)
    similarity = measure_fidelity(255 - pixels, pixels)
    assert (similarity["ssim_y"] or 0) < 0
    assert similarity["ms_ssim_y"] == 0.0  # negative parts count as nothing


def test_too_small_pictures_have_no_number() -> None:
    pixels = picture(160, 200, seed=16)
    assert measure_fidelity(pixels, pixels)["ms_ssim_y"] is None
    with pytest.raises(UsageError, match="MS-SSIM needs pictures of at least 161x161 pixels, not 200x160"):
        MultiScaleSimilarity(*pixels.shape[:2])
    thin = picture(10, 200, seed=17)
    assert measure_fidelity(thin, thin) == {"psnr_y": math.inf, "ssim_y": None, "ms_ssim_y": None}
    similarity = Similarity(width=200)
    similarity.push(*(np.zeros((10, 200), np.float32) for _ in range(2)))
    with pytest.raises(UsageError, match="at least 11x11"):
        similarity.ssim  # noqa: B018


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.zeros((20, 31, 3), np.uint8), "pictures of different sizes cannot be compared: 31x20 and 30x20"),
        (np.zeros((20, 30), np.uint8), r"a picture must be \(height, width, 3\), not \(20, 30\)"),
        (np.zeros((20, 30, 3), np.int64), "a picture must be uint8, uint16, or float"),
    ],
)
def test_what_cannot_be_compared_is_said(value: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        psnr_y(value, np.zeros((20, 30, 3), np.uint8))


def test_unknown_conventions_are_said() -> None:
    assert Luma.parse("bt601-full") is Luma.BT601_FULL
    with pytest.raises(UsageError, match=r"'bt709' is no luma convention"):
        Luma.parse("bt709")
