"""Colours of videos: matrices, ranges, chroma's place, the display matrix; against known values and OpenCV."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from livemoments.distances import psnr_db
from livemoments.errors import UsageError
from livemoments.runtime.video.yuv import Coding, UnusableFrameError, frame_to_rgb, from_rgb, to_rgb
from livemoments.simulated_clip import synthetic_photograph
from livemoments.types import Size

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(values: tuple[int, int, int], coding: Coding) -> tuple[int, ...]:
    kind = np.uint8 if coding.depth == 8 else np.uint16
    across, down = coding.shrink
    planes = [np.full((8, 8), values[0], kind)] + [np.full((8 // down, 8 // across), v, kind) for v in values[1:]]
    return tuple(int(v) for v in to_rgb((planes[0], planes[1], planes[2]), coding)[3, 3])


@pytest.mark.parametrize(
    ("coding", "yuv", "rgb"),
    [
        # colour bars of the standards, full saturation
        (Coding("bt601", False), (81, 90, 240), RED),
        (Coding("bt601", False), (145, 54, 34), GREEN),
        (Coding("bt601", False), (41, 240, 110), BLUE),
        (Coding("bt709", False), (63, 102, 240), RED),
        (Coding("bt709", False), (173, 42, 26), GREEN),
        (Coding("bt709", False), (32, 240, 118), BLUE),
        (Coding("bt601", True), (76, 85, 255), RED),
        (Coding("bt709", False, 10), (4 * 63, 4 * 102, 4 * 240), RED),
        (Coding("bt709", False, 10, (2, 1)), (940, 512, 512), (255, 255, 255)),
        (Coding("bt2020", False, 8, (1, 1)), (235, 128, 128), (255, 255, 255)),
        (Coding("bt2020", False), (74, 97, 240), RED),
        (Coding("bt601", True), (128, 128, 128), (128, 128, 128)),
    ],
)
def test_known_colours(coding: Coding, yuv: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    assert max(abs(a - b) for a, b in zip(flat(yuv, coding), rgb, strict=True)) <= 2


def test_full_range_bt601_is_opencvs() -> None:
    pixels = synthetic_photograph(Size(64, 96), seed=1)
    y, cr, cb = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb))
    ours = to_rgb((y, cb, cr), Coding("bt601", True, 8, (1, 1)))
    theirs = cv2.cvtColor(cv2.merge([y, cr, cb]), cv2.COLOR_YCrCb2RGB)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    luma, _, _ = from_rgb(pixels, Coding("bt601", True))
    assert np.abs(luma.astype(int) - y).max() <= 1


@pytest.mark.parametrize("coding", [Coding("bt601", True), Coding("bt709", False), Coding("bt2020", True)])
def test_there_and_back(coding: Coding) -> None:
    pixels = cv2.GaussianBlur(synthetic_photograph(Size(64, 96), seed=2), (0, 0), 3)
    assert psnr_db(to_rgb(from_rgb(pixels, coding), coding), pixels, 255) > 45
    with pytest.raises(UsageError, match="even"):
        from_rgb(pixels[:63], coding)


def test_chroma_lies_on_the_left_column_and_between_rows() -> None:
    coding = Coding("bt601", True)
    luma = np.full((16, 32), 128, np.uint8)
    across = np.tile((100 + 2 * np.arange(16)).astype(np.uint8), (8, 1))
    grey = np.full((8, 16), 128, np.uint8)
    red = to_rgb((luma, grey, across), coding)[8, :, 0].astype(float)
    # chroma column i is luma column 2 i: red = 128 + 1.402 (100 + x - 128)
    np.testing.assert_allclose(red[:30], 128 + 1.402 * (np.arange(30) - 28), atol=0.6)
    down = to_rgb((luma, grey, np.ascontiguousarray(np.tile(across[0, :8], (16, 1)).T)), coding)[:, 8, 0].astype(float)
    rows = np.arange(1, 15)
    np.testing.assert_allclose(down[rows], 128 + 1.402 * (rows - 0.5 - 28), atol=0.6)
    ramp = np.zeros((16, 32, 3), np.uint8)
    ramp[..., 0] = 4 * np.arange(32)
    cr = from_rgb(ramp, coding)[2].astype(float)
    np.testing.assert_allclose(cr[4, 1:-1], 128 + 0.5 * 4 * np.arange(2, 30, 2), atol=0.6)


class _Plane(bytes):
    """Bytes that know their layout, as a decoder's planes do."""

    width: int
    height: int
    line_size: int


def fake_frame(pixels: np.ndarray, display: tuple[int, int, int, int] | None = None, **changes: object) -> object:
    """What PyAV hands out, for a frame in full-range BT.601 with padded lines."""
    planes = []
    for values in from_rgb(pixels, Coding("bt601", True)):
        plane = _Plane(np.pad(values, ((0, 0), (0, 24))).tobytes())
        plane.height, plane.width, plane.line_size = values.shape[0], values.shape[1], values.shape[1] + 24
        planes.append(plane)
    side_data = {}
    if display is not None:
        a, b, c, d = (value * 65536 for value in display)
        side_data["DISPLAYMATRIX"] = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes()
    form = SimpleNamespace(name="yuv420p", is_rgb=False, components=[SimpleNamespace(bits=8)] * 3)
    frame = SimpleNamespace(
        planes=planes, format=form, colorspace=6, color_range=2, color_trc=6, width=pixels.shape[1],
        height=pixels.shape[0], side_data=side_data,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(frame, name, value)
    return frame


@pytest.mark.parametrize("display", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
                                     (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])  # fmt: skip
def test_the_display_matrix_moves_every_pixel_to_its_place(display: tuple[int, int, int, int]) -> None:
    pixels = synthetic_photograph(Size(32, 48), seed=3)
    upright = frame_to_rgb(fake_frame(pixels))
    found = frame_to_rgb(fake_frame(pixels, display))
    a, b, c, d = display
    for y, x in ((0, 0), (5, 40), (31, 47), (20, 3)):
        new_x, new_y = a * x + c * y, b * x + d * y
        new_x += found.shape[1] - 1 if (a or c) < 0 else 0
        new_y += found.shape[0] - 1 if (b or d) < 0 else 0
        assert (found[new_y, new_x] == upright[y, x]).all()


def test_tags_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.full((32, 48, 3), (220, 60, 40), np.uint8)

    def shown(**changes: object) -> np.ndarray:
        return frame_to_rgb(fake_frame(pixels, None, **changes))[8, 8].astype(int)

    assert np.abs(shown() - pixels[0, 0]).max() <= 2
    assert np.abs(shown(colorspace=1) - pixels[0, 0]).max() > 5
    assert np.abs(shown(color_range=1) - pixels[0, 0]).max() > 5
    assert (shown(colorspace=2) == shown()).all(), "small and untagged: BT.601"
    assert (shown(colorspace=2, width=1920) == shown(colorspace=1)).all(), "large and untagged: BT.709"
    for changes, match in (({"color_trc": 18}, "HLG"), ({"color_trc": 16}, "PQ"), ({"colorspace": 10}, "matrix")):
        with pytest.raises(UnusableFrameError, match=match):
            shown(**changes)
    form = SimpleNamespace(name="gray12le", is_rgb=False, components=[SimpleNamespace(bits=12)])
    with pytest.raises(UnusableFrameError, match="gray12le"):
        shown(format=form)
    with pytest.raises(UnusableFrameError, match="multiple of 90"):
        frame_to_rgb(fake_frame(pixels, (1, 1, -1, 1)))
