"""What calibration saw, and its file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields

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
        low, high: (P,) float64, the range that the observer chose at each point; ``low <= 0 <= high``.
        channel_absmax: (K,) float32, largest magnitude of each channel over all points.
        second_moment: (K,) float64, mean square of each channel over all points.
        channel_low, channel_high: (P, K) float32, extremes of each channel at each point.
        rows: (P,) int64, vectors seen at each point. Where there were none, everything per point is the union of the
            nearest points on both sides that were sampled.
    """

    low: np.ndarray
    high: np.ndarray
    channel_absmax: np.ndarray
    second_moment: np.ndarray
    channel_low: np.ndarray
    channel_high: np.ndarray
    rows: np.ndarray


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    schema: str
    images: int
    tiles: int
    sha256: str
    seed: int
    observer: str
    schedule: tuple[SchedulePoint, ...]
    source_sha256: str
    linears: tuple[tuple[str, str, int], ...]
    """Stage, weight, and the number of its arrays."""
    rotation: int = 0


_ARRAYS = tuple(field.name for field in fields(LinearStats))
_FACTS = tuple(name for name in _Header.__struct_fields__ if name not in ("schema", "linears"))
"""What the file has of :class:`CalibrationResult` besides the arrays."""


@dataclass(frozen=True, eq=False, slots=True)
class CalibrationResult:
    """What enters every linear of the transformers, over a set of photos.

    Attributes:
        stats: by linear.
        images: photos seen.
        tiles: tiles seen.
        sha256: of the set, the bundle and the settings: equal results have equal ones.
        seed: the seed of the noise.
        observer: what chose the ranges, as ``percentile:99.999``.
        schedule: the points that the statistics are for.
        source_sha256: of the checkpoint's files (:func:`source_digest`); empty: not known.
        rotation: the blocks that activations were rotated in before they were counted (a recipe's ``rotation``).
    """

    stats: dict[LinearId, LinearStats]
    images: int
    tiles: int
    sha256: str
    seed: int
    observer: str = ""
    schedule: tuple[SchedulePoint, ...] = ()
    source_sha256: str = ""
    rotation: int = 0

    def check_fits(self, bundle: Bundle, rotation: int = 0) -> None:
        """Refuse a bundle of another checkpoint or schedule; other precisions and tile sizes of the same one fit.

        Args:
            bundle: what is to be quantized.
            rotation: the recipe's.

        Raises:
            UsageError: checkpoints, schedules or rotations differ.
        """
        if self.rotation != rotation:
            seen = f"rotated in blocks of {self.rotation}" if self.rotation else "not rotated"
            raise UsageError(
                f"the calibration saw activations that were {seen}, and the recipe wants them in blocks of {rotation}"
                if rotation
                else f"the calibration saw activations that were {seen}, and the recipe does not rotate",
                fix="calibrate for this recipe: pass --calibration DIR",
            )
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
        distinct = list({id(stats): stats for stats in self.stats.values()}.values())
        places = {id(stats): place for place, stats in enumerate(distinct)}
        linears = tuple((linear.stage, linear.weight, places[id(stats)]) for linear, stats in self.stats.items())
        facts = {name: getattr(self, name) for name in _FACTS}
        arrays = {
            f"{place:05d}.{name}": getattr(stats, name) for place, stats in enumerate(distinct) for name in _ARRAYS
        }
        write_arrays(path, _Header(schema=SCHEMA, linears=linears, **facts), arrays)

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
            shared = {
                place: LinearStats(*(arrays[f"{place:05d}.{name}"] for name in _ARRAYS))
                for place in {place for _, _, place in header.linears}
            }
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror or error})", fix="check the path") from None
        except (ValueError, KeyError, msgspec.MsgspecError) as error:
            raise FileError(path, f"is not a calibration ({error})", fix=_AGAIN) from None
        stats = {LinearId(stage, weight): shared[place] for stage, weight, place in header.linears}
        return cls(stats, **{name: getattr(header, name) for name in _FACTS})


def source_digest(bundle: Bundle) -> str:
    """SHA-256 over the checkpoint's files, as the manifest lists them."""
    files = bundle.manifest.source.files
    return hashlib.sha256("".join(f"{name}:{files[name].sha256}\n" for name in sorted(files)).encode()).hexdigest()


def fill_unseen(values: np.ndarray, seen: np.ndarray, union: np.ufunc) -> np.ndarray:
    """Give points without data the union (``np.minimum``, ``np.maximum``) of their nearest neighbours that have some.

    Args:
        values: (P, ...), the points in the schedule's order.
        seen: (P,) bool; at least one is true.
        union: makes one row of two.
    """
    filled = values.copy()
    have = np.flatnonzero(seen)
    for point in np.flatnonzero(~seen):
        before, after = have[have < point], have[have > point]
        nearest = [*before[-1:], *after[:1]]
        filled[point] = union.reduce(values[nearest], axis=0)
    return filled
