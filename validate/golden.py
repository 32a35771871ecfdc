"""Recordings of upstream's computation, and how an implementation compares with one.

A recording is a folder: a checkpoint in upstream's layout (or ``meta.json``'s ``make_checkpoint``, the arguments with
which to make it), ``images/{lr,ref,ref_lr}/``, ``expected.npz`` with every intermediate by name, and ``meta.json`` with
the sizes: ``tile_size``, ``tile_overlap``, ``steps``, ``lr_res``, ``ref_res``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.distances import max_abs, psnr_db, relative_l2
from livemoments.errors import FileError
from livemoments.store.files import read_file
from livemoments.types import Size

EXACT_NAMES = frozenset({"ref_patch_coords", "tile_indices", "lq_padded_shape"})
"""Whole numbers that must be equal."""
IMAGE_LIMIT_LEVELS = 1.0
"""8-bit images may differ by one level anywhere: a float rounded the other way."""
_WHOLE_PHOTO_NAMES = ("photo.stitched", "photo.before_color_fix", "photo.result")


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded stage: its error in ``unit`` (``rel L2``, ``levels``, ``mismatches``, ``dB``) and its limit.

    ``dB`` is a PSNR, where more is better; everything else is an error. ``note`` says why a stage was not compared;
    ``error`` is then None.
    """

    name: str
    error: float | None
    limit: float
    unit: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit (NaN never is); rows not compared do not fail."""
        if self.error is None:
            return True
        return self.error >= self.limit if self.unit == "dB" else self.error <= self.limit

    def __str__(self) -> str:
        if self.error is None:
            return f"  --  {self.name:<52} {self.note}"
        return (
            f"{'ok  ' if self.passed else 'FAIL'}  {self.name:<52} {self.error:9.2e} {self.unit} (limit {self.limit:g})"
        )


class Recording:
    """An opened recording.

    Raises:
        FileError: a file is missing, or is not what it should be.
    """

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        self.folder = folder
        self.meta = _read_meta(folder / "meta.json")
        self.arrays = _read_arrays(folder / "expected.npz")
        self.image_paths = _find_images(images or folder / "images")

    def _number(self, name: str) -> float:
        value = self.meta.get(name)
        if not isinstance(value, int | float):
            raise FileError(self.folder / "meta.json", f"has no number '{name}'")
        return value

    @property
    def tile(self) -> Size:
        """The tile's size."""
        return Size(int(self._number("tile_size")), int(self._number("tile_size")))

    @property
    def overlap(self) -> int:
        """Pixels by which tiles overlap."""
        return int(self._number("tile_overlap"))

    @property
    def steps(self) -> int:
        """Sampling steps."""
        return int(self._number("steps"))

    def upscaled(self, frame: Size) -> Size:
        """The size that upstream resizes a frame to: ``int(size * ref_res / lr_res)``."""
        scale = self._number("ref_res") / self._number("lr_res")
        return Size(int(frame.height * scale), int(frame.width * scale))

    def has_noise(self, tile_index: int) -> bool:
        """Whether a tile's noise was recorded."""
        return f"tile{tile_index}.noise" in self.arrays


class Comparison:
    """An observer that compares each intermediate with the recording as it comes.

    Args:
        recording: what to compare with.
        limit: largest relative L2 error.
        image_psnr_db: least PSNR of 8-bit images; None holds them to one level everywhere.
    """

    def __init__(self, recording: Recording, limit: float, image_psnr_db: float | None = None) -> None:
        self._recording = recording
        self._limit = limit
        self._image_psnr_db = image_psnr_db
        self._rows: dict[str, Row] = {}

    def __call__(self, name: str, value: np.ndarray) -> None:
        """Compare one intermediate; names that the recording does not have are passed over."""
        expected = self._recording.arrays.get(name)
        if expected is None:
            return
        self._rows[name] = compare(name, value, expected, self._limit, self._image_psnr_db)

    def rows(self, why_missing: str) -> Iterator[Row]:
        """One row per recorded stage, in the order of computation; those never observed carry ``why_missing``."""
        incomplete = [name for name in self._recording.arrays if name.endswith(".decoded")]
        tiles = len(self._recording.arrays.get("ref_patch_coords", incomplete))
        partial = len(incomplete) < tiles
        for name in sorted(self._recording.arrays, key=_order):
            if partial and name in _WHOLE_PHOTO_NAMES:
                yield Row(name, None, 0.0, "", "not compared: the recording has the noise of some tiles only")
            elif name in self._rows:
                yield self._rows[name]
            else:
                yield Row(name, None, 0.0, "", why_missing)


def compare(
    name: str, value: np.ndarray, expected: np.ndarray, limit: float, image_psnr_db: float | None = None
) -> Row:
    """Compare one intermediate: exactly, in levels (or by PSNR) for 8-bit images, else by relative L2."""
    if value.shape != expected.shape:
        return Row(f"{name} {value.shape} != {expected.shape}", float("inf"), 0.0, "shape")
    if name in EXACT_NAMES:
        return Row(name, float(np.count_nonzero(value != expected)), 0.0, "mismatches")
    if expected.dtype == np.uint8 and image_psnr_db is not None:
        return Row(name, psnr_db(value, expected, peak=255), image_psnr_db, "dB")
    if expected.dtype == np.uint8:
        return Row(name, max_abs(value, expected), IMAGE_LIMIT_LEVELS, "levels")
    return Row(name, relative_l2(value, expected), limit, "rel L2")


def _order(name: str) -> tuple[int, int, str]:
    tile = name.split(".", 1)[0].removeprefix("tile")
    if tile.isdigit():
        return 1, int(tile), name
    return (2 if name in _WHOLE_PHOTO_NAMES else 0), 0, name


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError) as error:
        raise FileError(path, f"not readable ({error})", fix="name a folder in the golden format") from None
    if not isinstance(found, dict):
        raise FileError(path, "holds no JSON object")
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise FileError(path, f"not readable ({error})", fix="name a folder in the golden format") from None


def _find_images(folder: Path) -> dict[str, Path]:
    kinds = ("lr", "ref", "ref_lr")
    by_kind = {kind: {f.name: f for f in sorted((folder / kind).glob("*")) if f.is_file()} for kind in kinds}
    common = sorted(set.intersection(*(set(files) for files in by_kind.values())))
    if len(common) != 1:
        what = "no file name" if not common else f"{len(common)} file names"
        raise FileError(
            folder, f"lr/, ref/ and ref_lr/ have {what} in common", fix="keep one image of a recording there"
        )
    return {kind: by_kind[kind][common[0]] for kind in kinds}
