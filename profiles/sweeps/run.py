"""A sweep: every point measured, compared with the others, reported, and one of them picked."""

from __future__ import annotations

import contextlib
import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from livemoments.bundle import Bundle
from livemoments.errors import UsageError
from livemoments.live_photo import LivePhoto
from livemoments.profiles.machine import default_profile
from livemoments.profiles.sweeps.axes import Axis
from livemoments.profiles.sweeps.folder import PAGE, PICKED, REPORT, SweepFolder, only_sweep_in
from livemoments.profiles.sweeps.grid import find_exact, make_grid
from livemoments.profiles.sweeps.objectives import compared_by, find_objectives, front_of
from livemoments.profiles.sweeps.page import PagePictures, check_page, render_page
from livemoments.profiles.sweeps.pick import Wish, check_wish, parse_wish, pick
from livemoments.profiles.sweeps.points import MeasuredPoint, PointsAtWork
from livemoments.profiles.sweeps.report_data import Exact, Point, SweepReport
from livemoments.profiles.sweeps.winner import profile_of
from livemoments.profiles.write import profile_toml
from livemoments.progress import SILENT, Progress
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.options import RestoreOptions
from livemoments.store.files import check_file, read_file, write_file
from livemoments.validate.datasets.index import Dataset, open_dataset
from livemoments.validate.harness.image_metrics import StandardMetrics
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.harness.ray_engine import connected
from livemoments.validate.harness.run_key import bundle_digest
from livemoments.validate.harness.summary import aggregate_metrics
from livemoments.validate.report.numbers import format_count
from livemoments.validate.report_data import DatasetInfo
from livemoments.version import __version__


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """The options of :func:`sweep`.

    Attributes:
        base: the options of the restoration that are not swept.
        exact: the fp32 bundle that all points are held against; ``None``: the first fp32 one of the sweep.
        limit: at most this many images of the data set.
        metrics: of every image.
        run: where images are worked on; what it says of metrics, pictures and results does not count.
        runs: fresh processes a point, for latency and memory.
        photo: the image that these restore, by name; ``None``: the first.
        wish: an expression of :mod:`livemoments.profiles.sweeps.pick`.
        command: what was typed, for the report.
    """

    base: RestoreOptions = field(default_factory=RestoreOptions)
    exact: Bundle | None = None
    limit: int | None = None
    metrics: StandardMetrics = field(default_factory=StandardMetrics)
    run: RunOptions = field(default_factory=RunOptions)
    runs: int = 3
    photo: str | None = None
    wish: str | None = None
    command: str = ""


def sweep(
    bundles: Sequence[Bundle],
    data: Path,
    axes: Sequence[Axis],
    output: Path,
    options: SweepOptions | None = None,
    *,
    progress: Progress = SILENT,
) -> SweepReport:
    """Measure every bundle with every combination of values, and write the report.

    Each point's result is on the disk when it is finished, by what it depends on: a sweep that was killed goes on, and
    another one over the same folder takes what is there already. A point that fails is reported with its error, and the
    others go on.

    Args:
        bundles: opened with every hash checked.
        data: the data set's folder.
        axes: what varies.
        output: folder of the report and of what is kept.
        options: everything else; with ``run.fresh`` what the folder keeps is forgotten.
        progress: where to report.

    Raises:
        UsageError: a point is impossible, no bundle is fp32, an expression cannot be read: before anything is measured.
        ImageError: the data set cannot be used.
        BundleError: a bundle cannot be trusted.
        EngineError: the exact result cannot be made.
        OutputError: the folder cannot be written.
        ResourceError: the disk is full, or memory ran out for the exact result.
        MissingExtraError: an extra is not installed.
    """
    options = options or SweepOptions()
    if not bundles:
        raise UsageError("no bundle was named", fix="name one bundle or several")
    if options.runs < 1:
        raise UsageError(f"{options.runs} processes measure nothing", fix="use 1 or more")
    check_page()
    options.run.check(has_backend=False)
    wish = None if options.wish is None else parse_wish(options.wish, options.metrics.names)
    exact = options.exact or find_exact(bundles)
    grid = make_grid(bundles, axes, options.base, exact)
    if grid.merged:
        left_out = format_count(grid.merged, "combination")
        progress.say(f"{left_out} left out: the same work as another point")
    check_file(output / REPORT)
    folder = SweepFolder(output)
    with only_sweep_in(output):
        if options.run.fresh:
            folder.forget()
        dataset = open_dataset(data, limit=options.limit, work=folder.index, progress=progress)
        if wish is not None:
            check_wish(wish, has_truth=dataset.has_truth)
        work = PointsAtWork(
            folder,
            dataset,
            exact,
            options.run,
            options.metrics,
            runs=options.runs,
            photo=options.photo,
            progress=progress,
        )
        with connected(options.run.ray_address) if options.run.engine == "ray" else contextlib.nullcontext():
            measured = work.measure(grid.candidates)
        report = _report(work, measured, folder, dataset, exact, options, wish, grid.merged)
        _write(report, folder, work, measured)
    return report


def _report(
    work: PointsAtWork,
    measured: Sequence[MeasuredPoint],
    folder: SweepFolder,
    dataset: Dataset,
    exact: Bundle,
    options: SweepOptions,
    wish: Wish | None,
    merged: int,
) -> SweepReport:
    points = [_point(one, work.photo) for one in measured]
    objectives = find_objectives(points)
    compared = compared_by(objectives)
    front = front_of(points, [objective for objective in objectives if objective.name in compared])
    marked = tuple(msgspec.structs.replace(point, front=point.id in front) for point in points)
    return SweepReport(
        livemoments=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        dataset=DatasetInfo(
            name=dataset.name,
            descriptor=dataset.descriptor,
            images=len(dataset.items),
            has_truth=dataset.has_truth,
            sha256=dataset.sha256,
        ),
        photo=work.photo.name,
        exact_bundle=str(exact.path),
        machine=work.machine,
        runs=options.runs,
        merged=merged,
        objectives=objectives,
        compared=compared,
        exacts=tuple(
            Exact(
                id=key,
                settings=run.settings.to_json(),
                metrics=aggregate_metrics(results, folder.images(key), options.metrics),
            )
            for key, (run, results) in work.exacts.items()
        ),
        points=marked,
        pick=None if wish is None else pick(marked, wish),
    )


def _point(one: MeasuredPoint, photo: LivePhoto[Path]) -> Point:
    bundle, settings = one.candidate.bundle, one.candidate.settings
    images = ["--frame", str(photo.frame), "--photo", str(photo.photo)]
    images += [] if photo.photo_frame is None else ["--photo-frame", str(photo.photo_frame)]
    command = ["livemoments", "restore", str(bundle.path), *images, "-o", "restored.png", *settings.arguments()]
    return Point(
        id=one.id,
        bundle=one.candidate.label,
        digest=bundle_digest(bundle),
        bytes=sum(entry.bytes for entry in bundle.manifest.files.values()),
        values=dict(one.candidate.values),
        settings=settings.to_json(),
        exact=one.exact,
        command=shlex.join(command),
        result=one.result,
    )


def _write(report: SweepReport, folder: SweepFolder, work: PointsAtWork, measured: Sequence[MeasuredPoint]) -> None:
    """The numbers first: they must not be lost because a page could not be made."""
    write_file(folder.path / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    picked = folder.path / PICKED
    winner = None if report.pick is None else next((one for one in measured if one.id == report.pick.point), None)
    if winner is None:
        picked.unlink(missing_ok=True)  # of an earlier sweep
    else:
        point = next(point for point in report.points if point.id == winner.id)
        candidate, processor = winner.candidate, str(report.machine["processor"])
        profile = profile_of(point, candidate.bundle, candidate.settings, default_profile(), processor)
        write_file(picked, profile_toml(profile))
    truth = None if work.photo.truth is None else work.crop.of(read_photo(work.photo.truth))
    pictures = PagePictures(
        points={
            point.id: read_file(folder.path / point.result.crop)
            for point in report.points
            if point.result.crop is not None
        },
        exacts={key: crop for key in work.exacts if (crop := work.exact_crop(key)) is not None},
        beside={"input": work.crop.of_input(work.inputs), **({} if truth is None else {"ground truth": truth})},
    )
    write_file(folder.path / PAGE, render_page(report, pictures).encode())
