"""DIS flow: a known shift, its direction, determinism and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from livemoments.dis import dis_flow
from livemoments.errors import UsageError

LIMIT_ENDPOINT_PX = 0.5
SHIFT = (5, -3)  # x, y


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (H, W, 3) float32 images; the first one's content at (y, x) is the second's at (y - 3, x + 5)."""
    import cv2

    rng = np.random.default_rng(seed)
    texture = sum(
        cv2.resize(
            rng.random((260 // step, 300 // step, 3), dtype=np.float32), (300, 260), interpolation=cv2.INTER_CUBIC
        )
        for step in (4, 10, 30)
    )
    texture = np.clip(texture / 3, 0, 1)
    dx, dy = SHIFT
    return texture[20:220, 20:260].copy(), texture[20 - dy : 220 - dy, 20 - dx : 260 - dx].copy()


@pytest.mark.parametrize("preset", ["fast", "medium"])
def test_a_shift_is_found_with_its_direction(preset) -> None:
    first, second = pair(1)
    flow = dis_flow(first, second, preset)
    assert flow.shape == (200, 240, 2)
    assert flow.dtype == np.float32
    # Content near the border has left the second image.
    inner = flow[10:-10, 10:-10]
    assert np.linalg.norm(inner - np.array(SHIFT), axis=-1).mean() < LIMIT_ENDPOINT_PX


def test_equal_inputs_give_equal_flow() -> None:
    first, second = pair(2)
    flow = dis_flow(first, second)
    dis_flow(second, first)  # leaves nothing behind
    np.testing.assert_array_equal(dis_flow(first, second), flow)
    as_bytes = [np.rint(image * 255).astype(np.uint8) for image in (first, second)]
    np.testing.assert_array_equal(dis_flow(*as_bytes), flow)


def test_a_batch_equals_its_images() -> None:
    pairs = [pair(3), pair(4)]
    batch = dis_flow(np.stack([first for first, _ in pairs]), np.stack([second for _, second in pairs]), "fast")
    assert batch.shape == (2, 200, 240, 2)
    for flow, (first, second) in zip(batch, pairs, strict=True):
        np.testing.assert_array_equal(flow, dis_flow(first, second, "fast"))


def test_the_thread_setting_is_left_alone() -> None:
    import cv2

    before = cv2.getNumThreads()
    dis_flow(*pair(5), "ultrafast")
    assert cv2.getNumThreads() == before


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.parametrize("size", [(1, 1), (12, 48), (12, 1000), (24, 300), (300, 13), (63, 2000)])
def test_images_on_which_opencv_alone_would_crash(size: tuple[int, int], preset) -> None:
    image = np.random.default_rng(6).random((*size, 3), dtype=np.float32)
    flow = dis_flow(image, image, preset)
    assert flow.shape == (*size, 2)
    # Nothing moves.
    assert np.abs(flow).mean() < LIMIT_ENDPOINT_PX


@pytest.mark.parametrize(
    ("first", "second", "preset", "message"),
    [
        (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 21, 3), np.uint8), "fast", "one size"),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8), "fast", "RGB"),
        (np.zeros((20, 0, 3), np.uint8), np.zeros((20, 0, 3), np.uint8), "fast", "at least one pixel"),
        (np.zeros((20, 20, 3), np.float64), np.zeros((20, 20, 3), np.float64), "fast", "float64"),
        (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8), "slow", "'slow'"),
    ],
)
def test_bad_input_is_one_clear_error(first, second, preset, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dis_flow(first, second, preset)
