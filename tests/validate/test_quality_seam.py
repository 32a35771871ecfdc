"""Seams across tile borders, planted and not; PCR's statistics."""

from __future__ import annotations

import numpy as np
import pytest
from iqa_support import picture

from livemoments.errors import UsageError
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.types import Size, Tile
from livemoments.validate.harness.image_metrics import pcr_statistics
from livemoments.validate.quality.seam import Border, find_borders, seam_score

SIZE = Size(300, 420)
PLAN = plan_balanced(SIZE, [Size(128, 128)], 16)


def brightened(pixels: np.ndarray, tile: Tile, levels: float) -> np.ndarray:
    """One tile a little brighter, as if it had been blended without overlap."""
    changed = pixels.astype(np.float64)
    changed[tile.window] += levels
    return np.clip(np.rint(changed), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
def test_pictures_without_seams_score_about_one(seed: int) -> None:
    score = seam_score(picture(300, 420, seed=seed), PLAN.tiles)
    assert score is not None
    assert score == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_planted_seam_is_found(depth: type) -> None:
    pixels = picture(300, 420, seed=5)
    before = seam_score(pixels, PLAN.tiles)
    tile = PLAN.tiles[5]
    changed = brightened(pixels, tile, 8)
    if depth is np.uint16:
        changed = changed.astype(np.uint16) * 257
    after = seam_score(changed, PLAN.tiles)
    assert before is not None
    assert after is not None
    assert after > before + 0.05
    # The same step elsewhere is content, not a seam
    aside = seam_score(brightened(pixels, Tile(0, tile.y + 30, tile.x + 30, 60, 60), 8), PLAN.tiles)
    assert aside is not None
    assert aside == pytest.approx(before, abs=0.02)


def test_a_step_across_the_whole_picture_scores_as_computed() -> None:
    """A ramp of 2 levels a pixel with a jump of 7 at the border between two tiles."""
    ramp = 2.0 * np.arange(60) + np.where(np.arange(60) >= 30, 5.0, 0.0)
    pixels = np.broadcast_to(ramp[None, :, None] / 255, (40, 60, 3)).astype(np.float32)
    score = seam_score(pixels, [Tile(0, 0, 0, 40, 30), Tile(1, 0, 30, 40, 30)])
    assert score is not None
    scale = 219 / 255  # studio levels
    assert score == pytest.approx((7 * scale + 0.05) / (2 * scale + 0.05), rel=1e-3)


def test_a_seam_of_two_pixels_is_not_the_content_beside_it() -> None:
    ramp = 2.0 * np.arange(60) + 5.0 * (np.arange(60) >= 30) + 5.0 * (np.arange(60) >= 31)
    pixels = np.broadcast_to(ramp[:, None, None] / 255, (60, 40, 3)).astype(np.float32)
    score = seam_score(pixels, [Tile(0, 0, 0, 30, 40), Tile(1, 30, 0, 30, 40)])
    assert score is not None
    assert score == pytest.approx((7 * 219 / 255 + 0.05) / (2 * 219 / 255 + 0.05), rel=1e-3)


def test_flat_pictures_and_single_tiles() -> None:
    flat = np.full((64, 64, 3), 90, np.uint8)
    score = seam_score(flat, [Tile(0, 0, 0, 64, 40), Tile(1, 0, 24, 64, 40)])
    assert score is not None
    assert score == 1.0
    assert seam_score(flat, [Tile(0, 0, 0, 64, 64)]) is None
    assert seam_score(flat, [Tile(0, 0, 0, 128, 128)]) is None  # padded beyond the picture


def test_borders_are_joined_and_cut_to_the_picture() -> None:
    tiles = [Tile(0, 0, 0, 60, 50), Tile(1, 0, 40, 60, 50), Tile(2, 40, 0, 60, 50), Tile(3, 40, 40, 60, 50)]
    assert find_borders(tiles, Size(80, 90)) == (
        Border(False, 40, 0, 90),
        Border(False, 60, 0, 90),
        Border(True, 40, 0, 80),
        Border(True, 50, 0, 80),
    )


def test_close_borders_do_not_hide_each_other() -> None:
    """Both edges of a narrow overlap step by 6: neither may be taken for the content beside the other."""
    ramp = np.arange(60.0) + 6.0 * (np.arange(60) >= 28) + 6.0 * (np.arange(60) >= 32)
    pixels = np.broadcast_to(ramp[None, :, None] / 255, (40, 60, 3)).astype(np.float32)
    score = seam_score(pixels, [Tile(0, 0, 0, 40, 32), Tile(1, 0, 28, 40, 32)])
    assert score is not None
    scale = 219 / 255
    assert score == pytest.approx((7 * scale + 0.05) / (scale + 0.05), rel=1e-3)


def test_pcr_statistics() -> None:
    metadata = {"pcr_mean_shift_px": 3.25, "pcr_clamp_rate": 0.5, "tiles": 3}
    assert pcr_statistics(metadata) == {"mean_shift_px": 3.25, "clamp_rate": 0.5}
    corners = np.array([[0, 0], [10, 20], [30, 40]])
    other = np.array([[0, 0], [13, 24], [30, 41]])
    found = pcr_statistics(metadata, other, corners)
    assert (found["corners_differ"], found["corners_off_px"]) == (2.0, 5.0)
    assert pcr_statistics(metadata, corners, corners)["corners_differ"] == 0.0
    with pytest.raises(UsageError, match="not of the same tiles"):
        pcr_statistics(metadata, corners, corners[:2])
