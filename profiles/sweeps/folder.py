"""A sweep's folder: results kept by content, so that a killed sweep, and another one, go on from what is there.

====================  =========================================================================================
``sweep.json``        the report, and ``sweep.html`` its page
``picked.toml``       the profile that ``--pick`` chose
``points/ID.json``    one point's result, ``points/ID.jpg`` its crop
``images/KEY/``       a run over the data set (:mod:`livemoments.validate.harness.run_store`); points whose pictures
                      are the same share it; that of an exact result holds its photos
``index/``            the data set's checked files
====================  =========================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from livemoments.errors import UsageError
from livemoments.profiles.sweeps.report_data import PointResult
from livemoments.store.files import read_file, write_file
from livemoments.store.journals import work_alone

REPORT, PAGE, PICKED = "sweep.json", "sweep.html", "picked.toml"
_LOCK = ".lock"
_DIGITS = 16  # of a SHA-256: no two of a folder's entries meet in 64 bits


def digest_of(key: Mapping[str, Any]) -> str:
    """The name of what depends on these values and on nothing else."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:_DIGITS]


class SweepFolder:
    """The folder of one sweep after the other.

    Args:
        path: it is made when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def images(self, key: str) -> Path:
        """Where the run over the data set with this key works."""
        return self.path / "images" / key

    @property
    def index(self) -> Path:
        """Where the data set's checked files are remembered."""
        return self.path / "index"

    def forget(self) -> None:
        """Remove everything that was kept, but for the reports."""
        for name in ("points", "images"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def result(self, point: str) -> PointResult | None:
        """A point's result if it was measured to the end; one that failed, or that lacks its crop, is tried again."""
        try:
            result = msgspec.json.decode(read_file(self._file(point, "json")), type=PointResult)
        except (OSError, msgspec.DecodeError):  # none, or of another version
            return None
        is_whole = result.status == "ok" and result.crop is not None and (self.path / result.crop).is_file()
        return result if is_whole else None

    def keep(self, point: str, result: PointResult, crop: bytes | None = None) -> PointResult:
        """Write a point's result, its crop first; both are on the disk then.

        Raises:
            OutputError: the folder cannot be written.
            ResourceError: the disk is full.
        """
        if crop is not None:
            place = self._file(point, "jpg")
            write_file(place, crop)
            result = msgspec.structs.replace(result, crop=place.relative_to(self.path).as_posix())
        write_file(self._file(point, "json"), msgspec.json.encode(result))
        return result

    def _file(self, point: str, suffix: str) -> Path:
        return self.path / "points" / f"{point}.{suffix}"


@contextlib.contextmanager
def only_sweep_in(folder: Path) -> Iterator[None]:
    """Refuse a second sweep in one folder, while the first is alive.

    Raises:
        UsageError: another process is working there.
        OutputError: the folder cannot be made.
    """

    def busy(hint: str) -> UsageError:
        return UsageError(f"another sweep is working in {folder}", fix=f"wait for it, or choose another folder{hint}")

    with work_alone(folder, _LOCK, place=folder, busy=busy):
        yield
