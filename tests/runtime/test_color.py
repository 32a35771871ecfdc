"""The wavelet colour fix against torch's convolutions and direct float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from livemoments.errors import UsageError
from livemoments.runtime.color import (
    HALO_PX,
    color_fix_rows,
    low_frequencies,
    quantize_8bit,
    quantize_8bit_wrapping,
    to_unit_range,
    wavelet_color_fix,
)
from livemoments.types import Size

LIMIT_ABSOLUTE = 1e-6
# Truncation makes a level of a rounding error: on another CPU torch may sum in another order.
LIMIT_COMPAT_LEVELS = 1
LIMIT_COMPAT_DIFFERING = 1e-3


def torch_split(image: np.ndarray, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low frequencies, (C, H, W), by 3x3 convolutions."""
    kernel = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=dtype) / 16
    low = torch.from_numpy(image).to(dtype).permute(2, 0, 1)[:, None]
    high = torch.zeros_like(low)
    for dilation in (1, 2, 4, 8, 16):
        smooth = F.conv2d(F.pad(low, (dilation,) * 4, mode="replicate"), kernel[None, None], dilation=dilation)
        high += low - smooth
        low = smooth
    return high[:, 0], low[:, 0]


def torch_fix(content: np.ndarray, style: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    fixed = torch_split(content, dtype)[0] + torch_split(style, dtype)[1]
    return fixed.clamp(0, 1).permute(1, 2, 0).numpy()


def images(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A content in [0, 1], and a style that over- and undershoots."""
    rng = np.random.default_rng(seed)
    return rng.random((height, width, 3), dtype=np.float32), rng.uniform(-0.1, 1.1, (height, width, 3)).astype(
        np.float32
    )


@pytest.mark.parametrize("shape", [(96, 130), (37, 41), (9, 20), (1, 1), (3, 200)])
def test_low_frequencies_equal_the_convolutions(shape: tuple[int, int]) -> None:
    content, _ = images(*shape, seed=1)
    expected = torch_split(content, torch.float64)[1].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(low_frequencies(content), expected, rtol=0, atol=LIMIT_ABSOLUTE)


@pytest.mark.parametrize("shape", [(96, 130), (20, 9)])
def test_default_keeps_float_precision(shape: tuple[int, int]) -> None:
    content, style = images(*shape, seed=2)
    expected = torch_fix(content, style.clip(0, 1), torch.float64)
    fixed = wavelet_color_fix(content, style)
    assert fixed.dtype == np.float32
    np.testing.assert_allclose(fixed, expected, rtol=0, atol=LIMIT_ABSOLUTE)


@pytest.mark.parametrize("shape", [(96, 130), (20, 9)])
def test_compat_equals_upstream_on_8_bits(shape: tuple[int, int]) -> None:
    content, style = images(*shape, seed=3)
    content_8bit = np.round(content * 255).astype(np.uint8)
    style_8bit = ((style * np.float32(255)).astype(np.int64) % 256).astype(np.uint8)
    unit = [image.astype(np.float32) / np.float32(255) for image in (content_8bit, style_8bit)]
    expected = (torch_fix(*unit, torch.float32) * np.float32(255)).astype(np.uint8).astype(int)
    levels = wavelet_color_fix(content, style, compat_upstream=True) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    difference = np.abs(np.rint(levels).astype(int) - expected)
    assert difference.max() <= LIMIT_COMPAT_LEVELS
    assert (difference > 0).mean() <= LIMIT_COMPAT_DIFFERING


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("strip_px", [1, 17, 64, 1000])
def test_strips_equal_the_whole_bit_for_bit(strip_px: int, compat: bool) -> None:
    size = Size(height=90 if strip_px > 1 else 40, width=57)
    content, style = images(size.height, size.width, seed=4)
    whole = wavelet_color_fix(content, style, compat_upstream=compat)
    longest = 0

    def rows_of(image: np.ndarray):
        def rows(y0: int, y1: int) -> np.ndarray:
            nonlocal longest
            assert 0 <= y0 < y1 <= size.height
            longest = max(longest, y1 - y0)
            return image[y0:y1]

        return rows

    strips = list(color_fix_rows(rows_of(content), rows_of(style), size, compat_upstream=compat, strip_px=strip_px))
    assert [y0 for y0, _ in strips] == list(range(0, size.height, strip_px))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in strips]), whole)
    assert longest <= strip_px + 2 * HALO_PX


def test_the_halo_is_the_reach() -> None:
    impulse = np.zeros((2 * HALO_PX + 3, 3, 1), np.float32)
    impulse[HALO_PX + 1] = 1
    touched = np.flatnonzero(low_frequencies(impulse)[:, 1, 0])
    assert (touched[0], touched[-1]) == (1, 2 * HALO_PX + 1)


def test_identical_images_stay_as_they_are() -> None:
    content, _ = images(50, 70, seed=5)
    np.testing.assert_array_equal(wavelet_color_fix(content, content), content)


def test_the_result_has_the_styles_mean_colour() -> None:
    rng = np.random.default_rng(6)
    content = (0.3 + rng.normal(0, 0.02, (120, 120, 3))).astype(np.float32)
    style = np.broadcast_to(np.array([0.6, 0.5, 0.4], np.float32), content.shape).copy()
    fixed = wavelet_color_fix(content, style)
    np.testing.assert_allclose(fixed.mean(axis=(0, 1)), [0.6, 0.5, 0.4], atol=2e-3)
    assert fixed.std(axis=(0, 1)) == pytest.approx(content.std(axis=(0, 1)), rel=0.05)


def test_conversions() -> None:
    decoded = np.array([[[-3.0, -1.0, 0.0, 0.5, 1.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(to_unit_range(decoded)[0, 0], [0, 0, 0.5, 0.75, 1, 1])
    values = np.array([[[-0.1, 0.0, 100.4 / 255, 100.6 / 255, 1.0, 1.1]]], np.float32)
    np.testing.assert_allclose(quantize_8bit(values)[0, 0] * 255, [0, 0, 100, 101, 255, 255], atol=1e-4)
    # Truncated toward zero, then modulo 256: -25.5 -> -25 -> 231, 280.5 -> 280 -> 24.
    np.testing.assert_allclose(quantize_8bit_wrapping(values)[0, 0] * 255, [231, 0, 100, 100, 255, 24], atol=1e-4)


def test_shapes_that_do_not_fit() -> None:
    content, style = images(20, 20, seed=7)
    with pytest.raises(UsageError, match="differ in shape"):
        wavelet_color_fix(content, style[:10])
    with pytest.raises(UsageError, match="at least one row"):
        next(color_fix_rows(lambda a, b: content[a:b], lambda a, b: style[a:b], Size(20, 20), strip_px=0))
