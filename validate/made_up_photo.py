"""Live Photos where none was named: made up, or written as files for what reads files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from livemoments.bundle import Bundle
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.photo import Photo, write_image
from livemoments.simulated_clip import simulate_live_photo, synthetic_photograph
from livemoments.types import Size

_TILES = (1.4, 1.2)
"""Height and width of the made-up photo in tiles: a little more than one, so that blending and PCR take part."""
_LEAST_SIDE_PX = 148
"""What :func:`simulate_live_photo` needs to leave 64-pixel frames, however small the tiles are."""


def smallest_tile(bundle: Bundle) -> Size:
    """The tile size of a bundle that is quickest to compute."""
    return min(bundle.tile_sizes, key=lambda size: size.height * size.width)


def made_up_live_photo(tile: Size, seed: int) -> LivePhoto[Photo]:
    """A Live Photo with a photograph's spectrum, a little larger than a tile."""
    height, width = round(tile.height * _TILES[0]), round(tile.width * _TILES[1])
    size = Size(max(height, _LEAST_SIDE_PX), max(width, _LEAST_SIDE_PX))
    live = simulate_live_photo(synthetic_photograph(size, seed=seed), seed=seed)
    return replace(live, truth=None, name="made-up").map(Photo)


def write_live_photo(live: LivePhoto[Photo], folder: Path) -> LivePhoto[Path]:
    """The images as PNG files in a folder, named by part."""
    paths = {part: folder / f"{part}.png" for part in live.parts()}
    for part, picture in live.parts().items():
        write_image(paths[part], picture.pixels)
    return LivePhoto(paths["frame"], paths["photo"], paths.get("photo_frame"), paths.get("truth"), live.name)
