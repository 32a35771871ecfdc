"""The reference's photo-level arithmetic, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from livemoments.reference import photo
from livemoments.types import Size, Tile


def test_upstream_tiling_of_a_12_megapixel_photo() -> None:
    padded, tiles = photo.upstream_tiles(Size(3072, 4096), Size(1024, 1024), 64)
    assert (padded, len(tiles)) == (Size(3904, 4864), 20)


def test_upstream_tiling_of_a_photo_smaller_than_a_tile() -> None:
    padded, tiles = photo.upstream_tiles(Size(50, 300), Size(256, 256), 32)
    assert padded.height >= 256
    assert tiles
    assert all(tile.y + tile.height <= padded.height and tile.x + tile.width <= padded.width for tile in tiles)


def test_reflection_is_torchs_and_goes_on_where_torch_cannot() -> None:
    image = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(photo.pad_reflect(image, Size(12, 16)), F.pad(image, (0, 7, 0, 5), mode="reflect"))
    line = torch.arange(4.0).reshape(1, 1, 1, 4)
    assert photo.pad_reflect(line, Size(1, 13)).flatten().tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [(0.0, 0.0, (100, 200)), (5.9, -3.2, (96, 205)), (-250.0, 40.0, (140, 0)), (900.0, 900.0, (244, 344))],
)
def test_the_reference_corner_truncates_and_stays_inside(dx: float, dy: float, expected: tuple[int, int]) -> None:
    flow = torch.zeros(1, 2, 300, 400)
    flow[:, 0], flow[:, 1] = dx, dy
    assert photo.reference_corner(flow, Tile(0, 100, 200, 56, 56)) == expected


def test_blending_tiles_of_one_picture_gives_the_picture_up_to_its_border() -> None:
    size, overlap = Size(60, 90), 8
    picture = torch.rand(1, 3, size.height, size.width) * 2 - 1
    padded, tiles = photo.upstream_tiles(size, Size(32, 32), overlap)
    whole = photo.pad_reflect(picture, padded)
    cut = [(tile, photo.cut(whole, tile)) for tile in tiles]
    ours = photo.blend(cut, padded, size, upstream_border=False)
    torch.testing.assert_close(ours, picture, rtol=0, atol=1e-5)
    upstreams = photo.blend(cut, padded, size, upstream_border=True)
    torch.testing.assert_close(upstreams[..., 2:, 2:], picture[..., 2:, 2:], rtol=0, atol=1e-4)
    assert float(upstreams[..., 0, :].abs().max()) == 0.0  # upstream's grey row
    assert float(upstreams[..., :, 0].abs().max()) == 0.0


def test_the_colour_fix_takes_its_low_frequencies_from_the_style() -> None:
    rng = np.random.default_rng(0)
    content = torch.from_numpy(rng.random((1, 3, 128, 128), dtype=np.float32))
    style = torch.full_like(content, 0.25)
    fixed = photo.wavelet_color_fix(content, style)
    middle = fixed[..., 40:88, 40:88]
    assert abs(float(middle.mean()) - 0.25) < 0.01
    torch.testing.assert_close(photo.wavelet_color_fix(content, content), content, rtol=0, atol=1e-6)


def test_upstreams_bytes_wrap_where_bicubic_overshoots() -> None:
    values = torch.tensor([[0.0, 0.5, 1.0, 1.05, -0.05]])
    assert photo.to_bytes_upstream(values).tolist() == [[0, 127, 255, 11, 244]]


def test_resized_flow_is_in_the_new_pixels() -> None:
    flow = torch.ones(1, 2, 10, 20)
    resized = photo.resize_flow(flow, Size(40, 60))
    torch.testing.assert_close(resized[0, 0], torch.full((40, 60), 3.0))
    torch.testing.assert_close(resized[0, 1], torch.full((40, 60), 4.0))
