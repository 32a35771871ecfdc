"""One image of a data set as its files' bytes: what goes to a worker, here or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from livemoments.errors import ImageError, UsageError
from livemoments.runtime.images import Photo, decode_photo, read_image_bytes

if TYPE_CHECKING:
    from livemoments.validate.datasets.index import DatasetItem
    from livemoments.validate.recording.store import Recording

Role = Literal["lr", "ref", "ref_lr", "gt", "recorded"]
"""Upstream's names, and ``recorded``: the photo that the reference made of them."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Where one image's files are.

    Attributes:
        name: as in the data set.
        sha256: of the data set's files.
        paths: by role.
        data: bytes that were read already, by role; the others are read when they are wanted.
    """

    name: str
    sha256: str
    paths: Mapping[Role, Path]
    data: Mapping[Role, bytes] = field(default_factory=dict)

    def photo(self, role: Role) -> Photo | None:
        """The decoded picture; ``None`` where the data set has none.

        Raises:
            ImageError: it cannot be read.
            ResourceError: memory ran out.
        """
        if role not in self.paths:
            return None
        path = self.paths[role]
        return decode_photo(path, self.data[role] if role in self.data else read_image_bytes(path))

    def required(self, role: Role) -> Photo:
        """As :meth:`photo`, where there must be one.

        Raises:
            ImageError: there is none, or it cannot be read.
        """
        found = self.photo(role)
        if found is None:
            raise ImageError(self.name, f"the data set has no '{role}' of it")
        return found

    def loaded(self) -> ImageFiles:
        """The same with every file's bytes, so that it can be sent to a machine that does not have the files.

        Raises:
            ImageError: a file cannot be read.
        """
        data = {role: read_image_bytes(path) for role, path in self.paths.items()}
        return ImageFiles(self.name, self.sha256, dict(self.paths), data)


def files_of(item: DatasetItem, recording: Recording | None = None) -> ImageFiles:
    """An item's files, and the reference's photo if the recording has one under the same name."""
    found: dict[Role, Path | None] = {"lr": item.lr, "ref": item.ref, "ref_lr": item.ref_lr, "gt": item.gt}
    if recording is not None and item.name in recording.images:
        found["recorded"] = recording.image_path(item.name, "result")
    return ImageFiles(item.name, item.sha256, {role: path for role, path in found.items() if path is not None})


def check_recording(recording: Recording, seed: int) -> None:
    """Refuse a recording whose photos were made from another noise: their difference would say nothing.

    Raises:
        UsageError: the seeds differ, or the recording's noise came from elsewhere.
    """
    recorded = recording.meta.settings.seed
    if recorded != seed:
        made = "noise that no seed gives" if recorded is None else f"seed {recorded}"
        raise UsageError(
            f"{recording.path}: the reference's photos were made from {made}, this run uses seed {seed}",
            fix="leave the recording out" if recorded is None else f"use --seed {recorded}",
        )
