"""What ``livemoments synlive build`` writes beside its images: how every pair was made, and every file's hash."""

from __future__ import annotations

from pathlib import Path

import msgspec

from livemoments.errors import FileError
from livemoments.manifest import FileEntry
from livemoments.store.files import read_file
from livemoments.validate.synlive.codec import Codec
from livemoments.validate.synlive.degradation import Degradation

MANIFEST_NAME = "manifest.json"
SCHEMA = "livemoments/synlive/1"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's structs: immutable, strict."""


class BuildSettings(_Entry, frozen=True):
    """What was asked for.

    Attributes:
        photographs: pairs were simulated from photographs, not taken from videos.
        gap: frames between the two frames of a pair.
        crop: ``WxH``, or ``full``.
        scale: how much smaller the degraded frames are.
        degradation: ``real-esrgan``, ``live-photo`` or ``codec``.
        seed: of everything that is random.
    """

    photographs: bool
    gap: int
    crop: str
    scale: int
    degradation: str
    seed: int


class SourceEntry(_Entry, frozen=True):
    """A video, a folder of frames or a photograph."""

    name: str
    sha256: str


class Pair(_Entry, frozen=True, kw_only=True):
    """One pair.

    Attributes:
        name: of its files, without ``.png``.
        source: the name of the video or photograph; ``start`` the number of the pair's earlier frame in it.
        key_frame, frame: numbers of the key photo's and the reselected frame; 0 and 1 of a photograph: as it is, moved.
        crop: left column, top row, width and height in the source's pixels, before it was moved.
        motion_px: 95th percentile of the optical flow's length between the two.
        correlation: of their lumas after compensating that flow.
        degradation: the parameters, the same for ``lr`` and ``ref_lr``.
        coded_bits_per_pixel: what the codec spent; ``None`` without one.
        files: SHA-256 and bytes by folder (``lr``, ``ref``, ``ref_lr``, ``gt``).
    """

    name: str
    source: str
    start: int
    key_frame: int
    frame: int
    crop: tuple[int, int, int, int]
    motion_px: float
    correlation: float
    degradation: Degradation | Codec
    coded_bits_per_pixel: float | None = None
    files: dict[str, FileEntry]


class Skip(_Entry, frozen=True):
    """A pair that was looked at and left out, and why."""

    source: str
    start: int
    reason: str


class SynliveManifest(_Entry, frozen=True, kw_only=True):
    """The whole set.

    Attributes:
        livemoments: version that made it.
        versions: of the libraries that shape pixels.
        settings: what was asked for.
        sources: everything that was used.
        unusable: what was left out by ``--skip-unusable``: why, by name.
        pairs: in the order in which they were made.
        skipped: pairs that were left out on the way.
    """

    schema: str = SCHEMA
    livemoments: str
    versions: dict[str, str]
    settings: BuildSettings
    sources: tuple[SourceEntry, ...]
    unusable: dict[str, str]
    pairs: tuple[Pair, ...]
    skipped: tuple[Skip, ...]

    def encode(self) -> bytes:
        """As it goes into the file."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"


class _Head(msgspec.Struct):
    schema: str = ""


def read_manifest(folder: Path) -> SynliveManifest:
    """The manifest of a set.

    Raises:
        FileError: there is none, or it is not one of this schema.
    """
    path = folder / MANIFEST_NAME
    fix = "name a folder that 'livemoments synlive build' wrote"
    try:
        manifest = msgspec.json.decode(read_file(path), type=SynliveManifest)
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})", fix=fix) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"is not a set's manifest ({error})", fix=fix) from None
    if manifest.schema != SCHEMA:
        raise FileError(path, f"has the schema {manifest.schema}; this version reads {SCHEMA}", fix="build it again")
    return manifest


def is_set(folder: Path) -> bool:
    """Whether a folder is a set that was built before, and may be replaced by another."""
    try:
        head = msgspec.json.decode(read_file(folder / MANIFEST_NAME), type=_Head)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return head.schema.startswith("livemoments/synlive/")
