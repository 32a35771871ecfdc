"""The photo-level arithmetic of the reference in PyTorch: resizing, tiling, PCR, blending, colour fix.

Written as plainly as upstream computes it, on whole images; ``livemoments.runtime`` has its own, windowed versions,
so that each checks the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from livemoments.types import Size, Tile

_WEIGHT_EPSILON = 1e-8
_WAVELET_LEVELS = 5


def image_size(image: Tensor) -> Size:
    """Size of an image (…, H, W)."""
    return Size(image.shape[-2], image.shape[-1])


def upscaled_size(size: Size, scale: float) -> Size:
    """The size upstream resizes to: ``int(size * scale)``, scale = ref_res / lr_res."""
    return Size(int(size.height * scale), int(size.width * scale))


def resize_bicubic(image: Tensor, size: Size) -> Tensor:
    """Bicubic (a = -0.75, half-pixel centres, no antialias) resize of (B, C, H, W)."""
    if image_size(image) == size:
        return image
    return F.interpolate(image, size=(size.height, size.width), mode="bicubic", align_corners=False)


def resize_flow(flow: Tensor, size: Size) -> Tensor:
    """Resize a flow field (B, 2, H, W) and scale its x and y to the new pixels."""
    ratio = flow.new_tensor([size.width / flow.shape[-1], size.height / flow.shape[-2]])
    return resize_bicubic(flow, size) * ratio[None, :, None, None]


def upstream_tiles(size: Size, tile: Size, overlap: int) -> tuple[Size, tuple[Tile, ...]]:
    """Upstream's tiling: the padded size, ``(stride - (L - overlap) % stride) % stride`` longer, and its tiles."""

    def padded(length: int, side: int) -> int:
        stride = side - overlap
        return max(length + (stride - (length - overlap) % stride) % stride, side)

    whole = Size(padded(size.height, tile.height), padded(size.width, tile.width))
    corners = [
        (y, x)
        for y in range(0, whole.height - tile.height + 1, tile.height - overlap)
        for x in range(0, whole.width - tile.width + 1, tile.width - overlap)
    ]
    return whole, tuple(Tile(index, y, x, tile.height, tile.width) for index, (y, x) in enumerate(corners))


def pad_reflect(image: Tensor, size: Size) -> Tensor:
    """Reflect-pad (B, C, H, W) at the right and bottom up to ``size``.

    As ``F.pad(mode="reflect")``; where the padding is not smaller than the image, which upstream cannot do, the
    reflection goes on back and forth.
    """
    for axis, length in ((-2, size.height), (-1, size.width)):
        index = torch.arange(length, device=image.device)
        period = max(2 * (image.shape[axis] - 1), 1)
        index = index % period
        image = image.index_select(axis, torch.where(index < image.shape[axis], index, period - index))
    return image


def pad_zero(image: Tensor, size: Size) -> Tensor:
    """Zero-pad (B, C, H, W) at the right and bottom up to ``size``."""
    return F.pad(image, (0, size.width - image.shape[-1], 0, size.height - image.shape[-2]))


def cut(image: Tensor, tile: Tile, corner: tuple[int, int] | None = None) -> Tensor:
    """A tile of (B, C, H, W), at its own place or at another corner (y, x)."""
    y, x = corner or (tile.y, tile.x)
    return image[..., y : y + tile.height, x : x + tile.width]


def reference_corner(flow: Tensor, tile: Tile) -> tuple[int, int]:
    """Patch correspondence retrieval (section 3.4.2, equations 5 and 6): where the reference tile is cut.

    Args:
        flow: (1, 2, H, W), lr -> ref_lr, at the padded photo's size.
        tile: the tile of the reselected frame.

    Returns:
        (y, x): ``int(centre + mean flow - tile // 2)``, clamped so that the tile stays inside the padded photo.
    """
    mean = cut(flow, tile).mean(dim=(0, 2, 3))

    def shifted(start: int, side: int, displacement: Tensor, limit: int) -> int:
        corner = int(start + side // 2 + displacement.item() - side // 2)
        return min(max(corner, 0), limit - side)

    y = shifted(tile.y, tile.height, mean[1], flow.shape[-2])
    return y, shifted(tile.x, tile.width, mean[0], flow.shape[-1])


def tile_weight(size: Size, *, upstream_border: bool) -> Tensor:
    """Blend weight (1 - x^2)(1 - y^2) over a tile, (h, w).

    Upstream samples x and y from -1 to 1 inclusive, so the outermost pixels weigh nothing and the photo's top row and
    left column come out mid-grey; otherwise they are sampled at pixel centres, where no weight is zero.
    """

    def profile(count: int) -> Tensor:
        edge = 1.0 if upstream_border else 1 - 1 / count
        return 1 - torch.linspace(-edge, edge, count, dtype=torch.float64) ** 2

    return torch.outer(profile(size.height), profile(size.width)).float()


def blend(tiles: Sequence[tuple[Tile, Tensor]], padded: Size, size: Size, *, upstream_border: bool) -> Tensor:
    """Blend tiles (1, 3, h, w) to a photo (1, 3, H, W): the weighted sum over the summed weight, cropped.

    Upstream adds 1e-8 to the summed weight, which its zero border needs; without that border it is left out, for it
    would pull the corners, whose weight is about 1e-6, towards grey.
    """
    total = torch.zeros(1, 3, padded.height, padded.width)
    weights = torch.zeros(1, 1, padded.height, padded.width)
    for tile, pixels in tiles:
        weight = tile_weight(tile.size, upstream_border=upstream_border)
        total[(..., *tile.window)] += pixels.float().cpu() * weight
        weights[(..., *tile.window)] += weight
    epsilon = _WEIGHT_EPSILON if upstream_border else 0.0
    return (total / (weights + epsilon))[..., : size.height, : size.width]


def to_bytes(image: Tensor) -> Tensor:
    """[0, 1] to whole numbers 0 … 255, as float32."""
    return (image.clamp(0, 1) * 255).round()


def to_bytes_upstream(image: Tensor) -> Tensor:
    """[0, 1] to whole numbers as upstream converts the upscaled frame: cut off, not rounded, and wrapped modulo 256.

    Bicubic overshoot below 0 or above 1 therefore turns bright into dark and dark into bright (found in the golden
    recording, where only this reproduces upstream's result).
    """
    return torch.remainder((image * 255).to(torch.int32), 256).float()


def wavelet_blur(image: Tensor, radius: int) -> Tensor:
    """3x3 blur [1 2 1] x [1 2 1] / 16, dilated by ``radius``, replicate padding, of (B, C, H, W)."""
    row = image.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row).expand(image.shape[1], 1, 3, 3)
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=image.shape[1], dilation=radius)


def wavelet_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """High frequencies of ``content`` plus low ones of ``style``, both (B, 3, H, W): a 5-level a-trous wavelet."""
    low_content, low_style = content, style
    for level in range(_WAVELET_LEVELS):
        low_content = wavelet_blur(low_content, 2**level)
        low_style = wavelet_blur(low_style, 2**level)
    return content - low_content + low_style
