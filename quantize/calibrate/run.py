"""Calibration: what enters every linear of the transformers while the bundle restores the user's own photos.

The real pipeline runs on each photo; what it shows is reduced to statistics of bounded size as it comes. Each photo's
statistics are made from nothing and merged in the set's order, so that work that was interrupted and taken up again
gives the same bytes as work that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import EngineError, UsageError
from livemoments.graphs.linears import LinearId
from livemoments.graphs.segments import Tap
from livemoments.graphs.taps import TAPPED_STAGES, Listener, TappedBackend
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress, Task
from livemoments.quantize.calibrate.activations import ActivationStats
from livemoments.quantize.calibrate.observers import DEFAULT_PERCENTILE, Observer, find_observer
from livemoments.quantize.calibrate.photos import read_set, set_sha256
from livemoments.quantize.calibrate.result import (
    CalibrationResult,
    LinearStats,
    fill_unseen,
    source_digest,
)
from livemoments.quantize.recipes import FLOAT_RECIPES, PACKAGES, Recipe
from livemoments.quantize.rotation import rotate, rotation_block
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.backends.ort import import_onnxruntime
from livemoments.runtime.flow import FlowKind, resolve_flow
from livemoments.runtime.restore import restore
from livemoments.store.arrays import read_arrays, write_arrays
from livemoments.version import __version__

_SUFFIX = ".calibration"
TILES_TITLE = "Restoring tiles"
"""The bar of ``restore`` that counts tiles and steps; without it the set's bar moves photo by photo."""


class _PhotoHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tiles: int
    taps: tuple[tuple[tuple[str, str], ...], ...]
    """For each activation the stage and weight of every linear that it feeds."""


class _PhotoStats:
    """The statistics of one photo, or of several merged."""

    def __init__(self, points: int) -> None:
        self.tiles = 0
        self.taps: dict[tuple[LinearId, ...], ActivationStats] = {}
        self._points = points

    def add(self, tap: Tap, point: int, values: np.ndarray) -> None:
        stats = self.taps.get(tap.linears)
        if stats is None:
            stats = self.taps[tap.linears] = ActivationStats(self._points, tap.features)
        stats.add(point, values)

    def merge(self, other: _PhotoStats) -> None:
        self.tiles += other.tiles
        for linears, stats in other.taps.items():
            if linears in self.taps:
                self.taps[linears].merge(stats)
            else:
                self.taps[linears] = stats

    def save(self, path: Path) -> None:
        header = _PhotoHeader(self.tiles, tuple(tuple((i.stage, i.weight) for i in ids) for ids in self.taps))
        arrays = {
            f"{place:05d}.{name}": array
            for place, stats in enumerate(self.taps.values())
            for name, array in stats.to_arrays().items()
        }
        write_arrays(path, header, arrays, compress=True)

    @classmethod
    def load(cls, path: Path, points: int) -> _PhotoStats | None:
        """What was saved; ``None`` where nothing usable was."""
        try:
            encoded, arrays = read_arrays(path)
            header = msgspec.json.decode(encoded, type=_PhotoHeader)
            stats = cls(points)
            stats.tiles = header.tiles
            for place, names in enumerate(header.taps):
                prefix = f"{place:05d}."
                of_this = {n.removeprefix(prefix): array for n, array in arrays.items() if n.startswith(prefix)}
                linears = tuple(LinearId(stage, weight) for stage, weight in names)
                stats.taps[linears] = ActivationStats.from_arrays(of_this)
        except (OSError, ValueError, KeyError, IndexError, msgspec.MsgspecError):
            return None
        return stats


class _Shared:
    """Shows a restoration's own bars, and moves the set's bar along with its tiles, so that its time left is known
    within the first photo.

    Args:
        progress: where bars come from.
        whole: the set's bar.
        part: how much one restoration is worth, in the bar's unit.
    """

    def __init__(self, progress: Progress, whole: Task, part: float) -> None:
        self._progress = progress
        self._whole = whole
        self._part = part
        self.done = 0.0

    @contextlib.contextmanager
    def task(self, title: str, total: float | None = None) -> Iterator[Task]:
        """See :class:`Progress`."""
        with self._progress.task(title, total) as inner:
            yield _SharedTask(inner, self, self._part / total) if title == TILES_TITLE and total else inner

    def say(self, line: str) -> None:
        """See :class:`Progress`."""
        self._progress.say(line)

    def advance(self, amount: float) -> None:
        """Move the set's bar."""
        self.done += amount
        self._whole.advance(amount)


class _SharedTask:
    def __init__(self, inner: Task, shared: _Shared, unit: float) -> None:
        self._inner = inner
        self._shared = shared
        self._unit = unit

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self._inner.advance(amount, note)
        self._shared.advance(amount * self._unit)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a calibration counts besides the linears' inputs, and in which form.

    Attributes:
        operands: also what attention reads, and the keys and values between the networks.
        rotation: activations are rotated first, in blocks of at most this many channels (a recipe's); 0: they are not.
    """

    operands: bool = False
    rotation: int = 0


LINEARS = Counted()
"""The linears' inputs alone."""


def calibrate(
    bundle: Bundle | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    observer: str | Observer = "percentile",
    percentile: float = DEFAULT_PERCENTILE,
    steps: Sequence[int] | None = None,
    limit: int | None = None,
    what: Counted = LINEARS,
    work: str | os.PathLike[str] | None = None,
    flow: FlowKind | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> CalibrationResult:
    """Restore every photo of a set and collect what enters the linears, at every point of the schedule.

    Args:
        bundle: a float bundle, or its folder.
        folder: ``lr/``, ``ref/`` and perhaps ``ref_lr/`` with the same names (:func:`read_set`).
        seed: the seed of the noise; each photo's own follows from it and from the photo's contents.
        observer: what chooses the ranges: ``minmax``, ``percentile``, ``entropy`` or ``mse``, or an observer.
        percentile: how much ``percentile`` keeps.
        steps: the step counts to sample with; the bundle's default if not given. Points of the schedule that none of
            them samples get their neighbours' ranges.
        limit: use at most this many photos.
        what: which activations are counted, and how; by default the linears' inputs, as they are.
        work: a folder that keeps the statistics of each photo as it is done. Called again with the same, the photos
            that are there are not restored again; another observer can use them too.
        flow: ``engine`` (RAFT) or ``dis``, which is quicker; by default what ``restore`` uses with this bundle.
        threads: threads within an operator.
        progress: where to report; the photos that are left are one bar.

    Raises:
        UsageError: an argument cannot be used, or the bundle is quantized already.
        BundleError: the bundle cannot be trusted.
        ImageError: the set is empty, incomplete or damaged.
        EngineError: NaN or infinity enters a linear: names the layer and the step.
        OutputError: the work folder cannot be written.
        ResourceError: memory or disk ran out.
    """
    chosen = observer if isinstance(observer, Observer) else find_observer(observer, percentile)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if opened.manifest.recipe not in FLOAT_RECIPES:
        raise UsageError(
            f"{opened.path} is quantized already (recipe {opened.manifest.recipe})",
            fix="calibrate the bundle that it was made from",
        )
    counts = _step_counts(opened, steps)
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", fix="use 0 or more")
    items = read_set(folder, limit=limit, progress=progress)
    kind = resolve_flow(flow, opened)
    settings = _settings(opened, counts, seed, kind, what)
    total = _PhotoStats(len(opened.manifest.schedule.points))
    places = [
        None if work is None else Path(work) / f"{_digest(settings, item.sha256, str(threads))}{_SUFFIX}"
        for item in items
    ]
    left = [item for item, place in zip(items, places, strict=True) if place is None or not place.exists()]
    with progress.task("Calibrating", len(left)) as task:
        for item, place in zip(items, places, strict=True):
            stats = None if place is None else _PhotoStats.load(place, len(opened.manifest.schedule.points))
            if stats is None:
                task.advance(0, note=item.name)
                shared = _Shared(progress, task, 1 / len(counts))
                run = _Run(counts, photo_seed(seed, item), kind, threads, what)
                stats = _restore_one(opened, item, run, shared)
                if place is not None:
                    stats.save(place)
                task.advance(1 - shared.done)
            total.merge(stats)
    return CalibrationResult(
        stats=_reduce(total, chosen, progress),
        images=len(items),
        tiles=total.tiles,
        sha256=_digest(settings, set_sha256(items), chosen.name),
        seed=seed,
        observer=chosen.name,
        schedule=opened.manifest.schedule.points,
        source_sha256=source_digest(opened),
        rotation=what.rotation,
    )


def calibrate_for(
    recipe: Recipe,
    bundle: Bundle,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    observer: Observer | None = None,
    work: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> CalibrationResult:
    """:func:`calibrate` as a recipe wants it: its rotation, what it quantizes besides linears, and its observer, unless
    there is another.
    """
    return calibrate(
        bundle,
        folder,
        seed=seed,
        observer=observer or recipe.observer,
        percentile=recipe.percentile,
        what=Counted(recipe.needs_operands, recipe.rotation),
        work=work,
        progress=progress,
    )


def _step_counts(bundle: Bundle, steps: Sequence[int] | None) -> tuple[int, ...]:
    schedule = bundle.manifest.schedule
    counts = tuple(sorted(set(steps or ()))) or (schedule.default_steps,)
    if unknown := [count for count in counts if str(count) not in schedule.plans]:
        have = ", ".join(sorted(schedule.plans, key=int))
        raise UsageError(f"{bundle.path} has no plan for {unknown[0]} steps; it has {have}", fix=f"use one of {have}")
    return counts


def photo_seed(seed: int, item: LivePhoto[Path]) -> int:
    """The seed of one photo's noise: photos of a set get different noise, whatever else is in the set."""
    return int(_digest({"seed": seed}, item.sha256)[:8], 16)


@dataclass(frozen=True, slots=True)
class _Run:
    """How a photo is restored and what is counted of it."""

    counts: Sequence[int]
    seed: int
    flow: FlowKind
    threads: int | None
    what: Counted


def _restore_one(bundle: Bundle, item: LivePhoto[Path], how: _Run, progress: Progress) -> _PhotoStats:
    """Restore a photo with every step count and count what enters the linears."""
    schedule = bundle.manifest.schedule
    stats = _PhotoStats(len(schedule.points))

    def listen(tap: Tap, point: int, values: np.ndarray) -> None:
        block = rotation_block(tap.key, tap.features, how.what.rotation)
        try:
            stats.add(tap, point, rotate(values, block))
        except ValueError:
            raise EngineError(
                f"{item.name}: NaN or infinity enters {', '.join(map(str, tap.linears))} at schedule point {point} "
                f"(timestep {schedule.points[point].timestep:.1f})",
                fix="check the checkpoint's weights and this photo; a float16 bundle may need --precision fp32",
            ) from None

    for count in how.counts:
        result = restore(
            bundle,
            item.frame,
            item.photo,
            item.photo_frame,
            steps=count,
            seed=how.seed,
            flow=how.flow,
            pad_small=True,
            reference="per-step",
            progress=progress,
            backend=_tapped(bundle, listen, how),
        )
        stats.tiles += int(result.metadata["tiles"])
    return stats


def _tapped(bundle: Bundle, listen: Listener, how: _Run) -> Backend:
    if bundle.manifest.target != PACKAGES:
        return TappedBackend(listen, how.threads, operands=how.what.operands)
    from livemoments.quantize.packages.taps import TappedPackages

    return TappedPackages(listen)


def _reduce(total: _PhotoStats, observer: Observer, progress: Progress) -> dict[LinearId, LinearStats]:
    reduced: dict[LinearId, LinearStats] = {}
    with progress.task("Choosing ranges", len(total.taps)) as task:
        for linears, stats in total.taps.items():
            shared = _linear_stats(stats, observer)
            reduced.update(dict.fromkeys(linears, shared))
            task.advance()
    order = {str(stage): place for place, stage in enumerate(TAPPED_STAGES)}
    return dict(sorted(reduced.items(), key=lambda entry: (order.get(entry[0].stage, len(order)), entry[0])))


def _linear_stats(stats: ActivationStats, observer: Observer) -> LinearStats:
    ranges = np.array([observer.range(histogram) for histogram in stats.histograms], np.float64)
    seen = stats.rows > 0
    low = fill_unseen(stats.channel_low, seen, np.minimum)
    high = fill_unseen(stats.channel_high, seen, np.maximum)
    return LinearStats(
        low=fill_unseen(ranges[:, 0], seen, np.minimum),
        high=fill_unseen(ranges[:, 1], seen, np.maximum),
        channel_absmax=np.maximum(np.abs(low), np.abs(high)).max(axis=0),
        second_moment=stats.power / stats.rows.sum(),
        channel_low=low,
        channel_high=high,
        rows=stats.rows.copy(),
    )


def _settings(bundle: Bundle, counts: Sequence[int], seed: int, flow: FlowKind, what: Counted) -> Mapping[str, object]:
    """All that a photo's statistics depend on besides the photo."""
    more = {name: value for name, value in (("operands", what.operands), ("rotation", what.rotation)) if value}
    return more | {
        "graphs": {str(stage): bundle.digest(stage) for stage in bundle.manifest.model.stages},
        "overlap": bundle.manifest.overlap,
        "schedule": bundle.manifest.schedule,
        "steps": list(counts),
        "seed": seed,
        "flow": flow,
        "package": __version__,
        "onnxruntime": import_onnxruntime().__version__,
    }


def _digest(settings: Mapping[str, object], *texts: str) -> str:
    encoded = msgspec.json.encode([settings, *texts], order="sorted")
    return hashlib.sha256(encoded).hexdigest()
