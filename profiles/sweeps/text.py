"""A sweep on a terminal: the points that nothing beats, how many others there are, what failed, what was picked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from livemoments.profiles.sweeps.objectives import point_title, value_of, value_text
from livemoments.profiles.sweeps.report_data import SweepReport
from livemoments.validate.report.numbers import format_count

if TYPE_CHECKING:
    from rich.table import Table


def front_table(report: SweepReport) -> Table:
    """The points of the front, fastest first."""
    from rich.table import Table

    points = [point for point in report.points if point.front]
    shown = [one for one in report.objectives if one.name in (*report.compared, "fidelity")]
    axes = list(dict.fromkeys(name for point in points for name in point.values))
    table = Table(box=None, pad_edge=False)
    for name in ["bundle", *axes]:
        table.add_column(name)
    for one in shown:
        table.add_column(one.name, justify="right")
    for point in sorted(points, key=lambda point: value_of(point, report.compared[0]) or 0.0):
        values = [value_text(value_of(point, one.name), one.unit) for one in shown]
        table.add_row(point.bundle, *(point.values[name] for name in axes), *values)
    return table


def sweep_lines(report: SweepReport) -> Iterator[str]:
    """What is said below the table."""
    failed = [point for point in report.points if point.result.status == "failed"]
    front = sum(point.front for point in report.points)
    beaten = len(report.points) - len(failed) - front
    yield f"{format_count(front, 'point')} that no other beats in {_listed(report.compared)}; {beaten} beaten"
    for point in failed:
        yield f"failed: {point_title(point)}: {point.result.error}"
    if report.pick is not None:
        picked = next((point for point in report.points if point.id == report.pick.point), None)
        yield (
            f"picked: {point_title(picked)} ({report.pick.detail})"
            if picked
            else f"nothing picked: {report.pick.detail}"
        )


def is_short(report: SweepReport) -> bool:
    """Whether something that was asked for is missing: no point was measured, or none could be picked."""
    measured = any(point.result.status == "ok" for point in report.points)
    return not measured or (report.pick is not None and report.pick.point is None)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
