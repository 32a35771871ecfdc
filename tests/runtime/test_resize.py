"""Windows of resized and padded images against torch's interpolate and pad."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from livemoments.errors import UsageError
from livemoments.runtime.resize import BicubicView, PhotoView, pad_indices
from livemoments.types import Size

# Eight roundings of float32 on values up to about 1.
LIMIT_ABSOLUTE = 2e-6


def interpolate(image: np.ndarray, size: Size) -> np.ndarray:
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(tensor, size=(size.height, size.width), mode="bicubic", align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def torch_pad(image: np.ndarray, left: int, right: int, top: int, bottom: int, mode: str) -> np.ndarray:
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    return F.pad(tensor, (left, right, top, bottom), mode=mode)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((48, 64), Size(96, 128)),
        ((144, 108), Size(410, 307)),
        ((37, 53), Size(101, 97)),
        ((300, 211), Size(97, 64)),
        ((1, 1), Size(5, 7)),
        ((2, 3), Size(31, 2)),
        ((5, 3000), Size(5, 4096)),
    ],
)
def test_bicubic_equals_torch(source: tuple[int, int], size: Size) -> None:
    image = np.random.default_rng(1).random((*source, 3), dtype=np.float32)
    ours = BicubicView(image, size).window(0, 0, size.height, size.width)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, interpolate(image, size), rtol=0, atol=LIMIT_ABSOLUTE)


@pytest.mark.parametrize(("dtype", "maximum"), [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_are_scaled_by_their_maximum(dtype: type, maximum: int) -> None:
    image = np.random.default_rng(2).integers(0, maximum, (23, 31, 4), dtype=dtype, endpoint=True)
    unit = image.astype(np.float32) / maximum
    size = Size(40, 90)
    resized = BicubicView(unit, size).window(0, 0, 40, 90)
    np.testing.assert_array_equal(BicubicView(image, size).window(0, 0, 40, 90), resized)
    np.testing.assert_array_equal(PhotoView(image).window(0, 0, 23, 31), unit)


@given(
    y=st.integers(-90, 150),
    x=st.integers(-90, 150),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    padding=st.sampled_from(["reflect", "edge", "zero"]),
    full_size=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_window_equals_the_whole_bit_for_bit(y, x, height, width, padding, full_size) -> None:
    rng = np.random.default_rng(3)
    if full_size:
        view: PhotoView | BicubicView = PhotoView(rng.random((71, 83, 2), dtype=np.float32), padding=padding)
    else:
        view = BicubicView(rng.random((29, 31, 2), dtype=np.float32), Size(71, 83), padding=padding)
    whole = view.window(0, 0, 71, 83)
    # A direct pixel-by-pixel definition of the three paddings.
    period = {"y": 2 * 70, "x": 2 * 82}

    def source(position: int, length: int, axis: str) -> int | None:
        if padding == "edge":
            return min(max(position, 0), length - 1)
        if padding == "zero":
            return position if 0 <= position < length else None
        position %= period[axis]
        return position if position < length else period[axis] - position

    rows = [source(y + i, 71, "y") for i in range(height)]
    columns = [source(x + i, 83, "x") for i in range(width)]
    expected = np.zeros((height, width, 2), np.float32)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if row is not None and column is not None:
                expected[i, j] = whole[row, column]
    np.testing.assert_array_equal(view.window(y, x, height, width), expected)


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("edge", "replicate"), ("zero", "constant")])
def test_padding_equals_torch(padding: str, mode: str) -> None:
    image = np.random.default_rng(4).random((20, 26, 3), dtype=np.float32)
    padded = torch_pad(image, 7, 25, 19, 3, mode)
    np.testing.assert_array_equal(PhotoView(image, padding=padding).window(-19, -7, 42, 58), padded)


def test_reflection_longer_than_the_image_goes_on_periodically() -> None:
    # Positions -5 to 8 of the axis [0, 1, 2]: ... 2 1 | 0 1 2 | 1 0 ...
    assert pad_indices(-5, 14, 3, "reflect").tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert pad_indices(-3, 6, 1, "reflect").tolist() == [0] * 6


def test_scale_multiplies_each_channel() -> None:
    flow = np.random.default_rng(5).standard_normal((19, 23, 2)).astype(np.float32)
    size = Size(57, 46)
    scaled = BicubicView(flow, size, scale=(2.0, 3.0)).window(0, 0, 57, 46)
    plain = BicubicView(flow, size).window(0, 0, 57, 46)
    np.testing.assert_array_equal(scaled, plain * np.array([2, 3], np.float32))


def test_a_window_does_not_alias_the_source() -> None:
    image = np.zeros((8, 8, 3), np.float32)
    PhotoView(image).window(0, 0, 8, 8)[...] = 1
    assert not image.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PhotoView(np.zeros((4, 4), np.uint8)), "height, width, channels"),
        (lambda: PhotoView(np.zeros((0, 4, 3), np.uint8)), "at least one pixel"),
        (lambda: PhotoView(np.zeros((4, 4, 3), np.int32)), "int32"),
        (lambda: BicubicView(np.zeros((4, 4, 3), np.uint8), Size(0, 3)), "3x0"),
        (lambda: BicubicView(np.zeros((4, 4, 3), np.uint8), Size(8, 8), scale=(1.0,)), "1 scale factors"),
        (lambda: PhotoView(np.zeros((4, 4, 3), np.uint8), padding="wrap"), "'wrap'"),
        (lambda: PhotoView(np.zeros((4, 4, 3), np.uint8)).window(0, 0, 0, 4), "4x0"),
    ],
)
def test_bad_input_is_one_clear_error(call, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
