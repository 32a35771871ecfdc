"""``recording.json``: what a recording holds, where it came from, and under which conditions it was made.

Everything here is data (msgspec structs, JSON on disk); ``store.py`` reads it, ``writer.py`` writes it.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from livemoments.manifest import FileEntry, Model, SchedulePoint, Source
from livemoments.types import ReferencePolicy, Size, Tile

RECORDING_SCHEMA = "livemoments/recording/1"
META_NAME = "recording.json"

Detail = Literal["stages", "keys-values", "blocks", "modules"]
DETAILS: tuple[Detail, ...] = ("stages", "keys-values", "blocks", "modules")
"""From coarse to fine; each level holds those before it."""
StorageType = Literal["float32", "float16"]

LR, REF, REF_LR, TRUTH, RESULT = "lr", "ref", "ref_lr", "gt", "result"
ROLES = (LR, REF, REF_LR, TRUTH, RESULT)
"""Folders under ``images/``: upstream's inputs, the ground truth where there is one, the reference's result."""


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the recording's structs: immutable, strict."""


class TileEntry(_Entry, frozen=True):
    """One tile: its rectangle on the photo, and the corner at which its reference was cut (PCR), pixels."""

    y: int
    x: int
    height: int
    width: int
    ref_y: int
    ref_x: int


class ImageEntry(_Entry, frozen=True):
    """One photo.

    Attributes:
        files: image files by role: ``lr``, ``ref``, ``ref_lr`` (missing: it was derived from the photo), ``gt`` (where
            there is one) and ``result``, relative to the recording.
        size: the photo's, ``WxH``; ``padded``: what the tiles cover.
        tiles: in order of their index.
        detail: what was recorded of this photo.
        tensors: its safetensors files, relative to the recording.
    """

    files: dict[str, str]
    size: str
    padded: str
    tiles: tuple[TileEntry, ...]
    detail: Detail
    tensors: tuple[str, ...]

    def tile(self, index: int) -> Tile:
        """One tile as the planner has it."""
        entry = self.tiles[index]
        return Tile(index, entry.y, entry.x, entry.height, entry.width)


class RecordingSettings(_Entry, frozen=True):
    """The conditions.

    Attributes:
        tile: size of every tile, ``WxH``.
        overlap: least overlap of neighbours, pixels.
        steps: Euler steps.
        policy: reference policy.
        schedule: timestep and sigma of each step, in order.
        noise_level: ``z_init = (1 - noise_level) z_lq + noise_level noise``.
        seed: decides the tiles' noise, drawn as the runtime draws it; ``None``: drawn in some other way.
        upstream: upstream's tiling, border and 8-bit colour fix (``--compat upstream``) instead of the runtime's.
    """

    tile: str
    overlap: int
    steps: int
    policy: str
    schedule: tuple[SchedulePoint, ...]
    noise_level: float
    seed: int | None
    upstream: bool = False

    def kv_steps(self) -> tuple[int, ...]:
        """For each step, the step under whose name the keys and values that it uses are recorded."""
        recorded: list[int] = []
        sources = self.kv_sources()
        for step, source in enumerate(sources):
            renewed = step == 0 or source != sources[step - 1]
            recorded.append(step if renewed else recorded[-1])
        return tuple(recorded)

    def kv_sources(self) -> tuple[int, ...]:
        """For each step, the step at whose timestep its keys and values were computed."""
        return ReferencePolicy.parse(self.policy).source_steps(self.steps)


class Selection(_Entry, frozen=True):
    """Of what more than the stages was recorded; ``None``: of all."""

    images: tuple[str, ...] | None = None
    tiles: tuple[int, ...] | None = None
    steps: tuple[int, ...] | None = None
    blocks: tuple[int, ...] | None = None


class RecordingMeta(_Entry, frozen=True):
    """``recording.json``.

    Attributes:
        created: UTC, ISO 8601.
        producer: the package and its version.
        source: the checkpoint.
        dtype: what floats are stored as. Under ``float16`` a tensor too small for half precision stays ``float32``.
        model: what the runtime must know of the networks; ``None`` where a recording of another format does not say.
        detail: the finest level.
        images: by name.
        files: size and SHA-256 of every file, by path relative to the recording.
    """

    schema: str
    created: str
    producer: str
    source: Source
    dtype: StorageType
    settings: RecordingSettings
    model: Model | None
    detail: Detail
    selection: Selection
    images: dict[str, ImageEntry]
    files: dict[str, FileEntry]

    @property
    def digest(self) -> str:
        """SHA-256 of everything but ``created`` and ``producer``: equal for equal contents."""
        plain = msgspec.structs.replace(self, created="", producer="")
        return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()

    @property
    def tile(self) -> Size:
        """Size of every tile."""
        return Size.parse(self.settings.tile)
