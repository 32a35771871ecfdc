"""What calibration found, and its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import FileError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.manifest import SchedulePoint
from livemoments.store.arrays import read_arrays, write_arrays

SCHEMA = "livemoments/calibration/1"
_AGAIN = "calibrate again"


@dataclass(frozen=True, eq=False, slots=True)
class LinearStats:
    """What enters one linear: P schedule points, K channels. Linears that share their input share this.

    Attributes:
        points: P.
        low, high: (P,) float64, the range that the observer chose at each point; ``low <= 0 <= high``.
        channel_absmax: (K,) float32, largest magnitude of each channel over all points.
        second_moment: (K,) float64, mean square of each channel over all points.
        channel_low, channel_high: (P, K) float32, extremes of each channel at each point.
        rows: (P,) int64, vectors seen at each point. Where there were none, everything per point is the union of the
            nearest points on both sides that were sampled.
    """

    points: int
    low: np.ndarray
    high: np.ndarray
    channel_absmax: np.ndarray
    second_moment: np.ndarray
    channel_low: np.ndarray | None = None
    channel_high: np.ndarray | None = None
    rows: np.ndarray | None = None


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    schema: str
    images: int
    tiles: int
    sha256: str
    seed: int
    observer: str
    schedule: tuple[SchedulePoint, ...]
    source_sha256: str
    linears: tuple[tuple[str, str, int], ...]
    """Stage, weight, and which of the arrays are its."""


@dataclass(frozen=True, eq=False, slots=True)
class CalibrationResult:
    """What enters every linear of the transformers, over a set of photos.

    Attributes:
        stats: by linear.
        images: photos seen.
        tiles: tiles seen.
        sha256: of the set, the bundle and the settings: equal results have equal ones.
        seed: of the noise.
        observer: what chose the ranges, as ``percentile:99.999``.
        schedule: the points that the statistics are for.
        source_sha256: of the checkpoint's files (:func:`source_digest`); empty: not known.
    """

    stats: dict[LinearId, LinearStats]
    images: int
    tiles: int
    sha256: str
    seed: int
    observer: str = ""
    schedule: tuple[SchedulePoint, ...] = ()
    source_sha256: str = ""

    def check_fits(self, bundle: Bundle) -> None:
        """Refuse a bundle of another checkpoint or schedule; other precisions and tile sizes of the same one fit.

        Raises:
            UsageError: checkpoints or schedules differ.
        """
        if self.source_sha256 not in ("", source_digest(bundle)):
            raise UsageError(
                f"the calibration was made with another checkpoint than {bundle.path}",
                fix="calibrate with this bundle, or with one exported from the same checkpoint",
            )
        if self.schedule != bundle.manifest.schedule.points:
            raise UsageError(
                f"the calibration has other timesteps than {bundle.path}", fix="calibrate with the bundle's own steps"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it; the same result gives the same bytes.

        Raises:
            OutputError: the place cannot be written.
        """
        kept: dict[int, LinearStats] = {}
        places = {identity: place for place, identity in enumerate(dict.fromkeys(map(id, self.stats.values())))}
        linears = []
        for linear, stats in self.stats.items():
            place = places[id(stats)]
            kept[place] = stats
            linears.append((linear.stage, linear.weight, place))
        header = _Header(
            schema=SCHEMA,
            images=self.images,
            tiles=self.tiles,
            sha256=self.sha256,
            seed=self.seed,
            observer=self.observer,
            schedule=self.schedule,
            source_sha256=self.source_sha256,
            linears=tuple(linears),
        )
        arrays = {f"{place:05d}.{name}": array for place, stats in kept.items() for name, array in _arrays(stats)}
        write_arrays(path, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationResult:
        """Read what :meth:`save` wrote.

        Raises:
            FileError: it cannot be read, is damaged, or is something else.
        """
        try:
            encoded, arrays = read_arrays(path)
            header = msgspec.json.decode(encoded, type=_Header)
            if header.schema != SCHEMA:
                raise ValueError(f"its schema is {header.schema!r}, not {SCHEMA!r}")
            shared = {place: _stats(arrays, place) for place in {place for _, _, place in header.linears}}
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror or error})", fix="check the path") from None
        except (ValueError, KeyError, msgspec.MsgspecError) as error:
            raise FileError(path, f"is not a calibration ({error})", fix=_AGAIN) from None
        return cls(
            stats={LinearId(stage, weight): shared[place] for stage, weight, place in header.linears},
            images=header.images,
            tiles=header.tiles,
            sha256=header.sha256,
            seed=header.seed,
            observer=header.observer,
            schedule=header.schedule,
            source_sha256=header.source_sha256,
        )


def source_digest(bundle: Bundle) -> str:
    """SHA-256 over the checkpoint's files, as the manifest lists them."""
    files = bundle.manifest.source.files
    return hashlib.sha256("".join(f"{name}:{files[name].sha256}\n" for name in sorted(files)).encode()).hexdigest()


def fill_unseen(values: np.ndarray, seen: np.ndarray, union: np.ufunc) -> np.ndarray:
    """Give points without data the union (``np.minimum``, ``np.maximum``) of their nearest neighbours that have some.

    Args:
        values: (P, ...), the points in the schedule's order.
        seen: (P,) bool; at least one is true.
        union: of two rows.
    """
    filled = values.copy()
    have = np.flatnonzero(seen)
    for point in np.flatnonzero(~seen):
        before, after = have[have < point], have[have > point]
        nearest = [*before[-1:], *after[:1]]
        filled[point] = union.reduce(values[nearest], axis=0)
    return filled


def _arrays(stats: LinearStats) -> Iterable[tuple[str, np.ndarray]]:
    for name in LinearStats.__slots__:
        value = getattr(stats, name)
        if name != "points" and value is not None:
            yield name, value


def _stats(arrays: Mapping[str, np.ndarray], place: int) -> LinearStats:
    found = {name: arrays.get(f"{place:05d}.{name}") for name in LinearStats.__slots__ if name != "points"}
    low, high, absmax, moment = (found.pop(name) for name in ("low", "high", "channel_absmax", "second_moment"))
    if low is None or high is None or absmax is None or moment is None:
        raise ValueError("arrays are missing")
    return LinearStats(len(low), low, high, absmax, moment, **found)
