"""One image of a data set as its files' bytes: what goes to a worker, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.runtime.image_files.photo import Photo, decode_photo, read_image_bytes
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.schedule import plan_steps
from livemoments.types import Tile
from livemoments.validate.recording.schema import RESULT

if TYPE_CHECKING:
    from livemoments.live_photo import LivePhoto
    from livemoments.validate.recording.store import Recording

Role = Literal["frame", "photo", "photo_frame", "truth", "recorded"]
"""Of a Live Photo, and ``recorded``: the photo that the reference, or another run, made of it."""


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Where one image's files are.

    Attributes:
        name: as in the data set.
        sha256: of the data set's files.
        paths: by role.
        data: bytes that were read already, by role; the others are read when they are wanted.
        corners: where the reference cut each tile's reference, as (y, x) by the tile's (y, x), in pixels.
    """

    name: str
    sha256: str
    paths: Mapping[Role, Path]
    data: Mapping[Role, bytes] = field(default_factory=dict)
    corners: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def photo(self, role: Role) -> Photo:
        """The decoded picture.

        Raises:
            ImageError: it cannot be read.
            ResourceError: memory ran out.
        """
        path = self.paths[role]
        return decode_photo(path, self.data[role] if role in self.data else read_image_bytes(path))

    def photo_if_there(self, role: Role) -> Photo | None:
        """As :meth:`photo`; ``None`` where the data set has none."""
        return self.photo(role) if role in self.paths else None

    def loaded(self) -> ImageInputs:
        """The same with every file's bytes, so that it can be sent to a machine that does not have the files.

        Raises:
            ImageError: a file cannot be read.
        """
        data = {role: read_image_bytes(path) for role, path in self.paths.items()}
        return replace(self, data=data)

    def corners_of(self, tiles: Sequence[Tile]) -> np.ndarray | None:
        """The reference's corners for these tiles, (tiles, 2); ``None`` where it was not recorded with them."""
        corners = [self.corners.get((tile.y, tile.x)) for tile in tiles]
        return None if None in corners or not corners else np.array(corners)


def inputs_of(
    item: LivePhoto[Path], recording: Recording | None = None, others: Mapping[str, Path] = MappingProxyType({})
) -> ImageInputs:
    """An item's files, and the photo that it is compared with, if there is one under the same name.

    Args:
        item: of the data set.
        recording: of the reference, which has photos.
        others: photos by name.
    """
    paths: dict[Role, Path] = {cast("Role", part): path for part, path in item.parts().items()}
    if item.name in others:
        paths["recorded"] = others[item.name]
    corners = {}
    if recording is not None and item.name in recording.images:
        result = recording.image_path(item.name, RESULT)
        paths |= {} if result is None else {"recorded": result}
        corners = {(tile.y, tile.x): (tile.ref_y, tile.ref_x) for tile in recording.entry(item.name).tiles}
    return ImageInputs(item.name, item.sha256, paths, corners=corners)


def check_recording(recording: Recording, settings: RestoreOptions, bundle: Bundle) -> None:
    """Refuse a recording made under other conditions: its photos would differ whatever the engines do.

    The reference policy may differ: what an approximate one costs is worth knowing.

    Raises:
        UsageError: noise, steps, tiles or compatibility differ.
    """
    conditions = recording.meta.settings
    if conditions.seed is None:
        raise UsageError(
            f"{recording.path}: its noise came from no seed, so photos cannot be compared",
            fix="leave it out here; the parity ladder can use it",
        )
    manifest = bundle.manifest
    tiles = str(settings.tile) if settings.tile else (manifest.tiles[0] if len(manifest.tiles) == 1 else "several")
    for what, option, own, recorded in (
        ("seed", "--seed", settings.seed, conditions.seed),
        ("steps", "--steps", len(plan_steps(manifest.schedule, settings.steps)), conditions.steps),
        ("tiles", "--tile", tiles, conditions.tile),
        ("overlap", None, manifest.overlap, conditions.overlap),
        ("compat upstream", None, settings.compat == "upstream", conditions.upstream),
    ):
        if own != recorded:
            raise UsageError(
                f"{recording.path}: recorded with {what} {recorded}, this run uses {own}",
                fix=f"use {option} {recorded}, or leave the recording out" if option else "leave the recording out",
            )
