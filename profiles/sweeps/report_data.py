"""A sweep's report as data: ``sweep.json``, and what the table, the page and ``--pick`` read.

Numbers that could not be measured are ``None`` with a reason beside them; equal pictures have no PSNR, and ``equal``
says so.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from livemoments.validate.report_data import Better, DatasetInfo, Memory, Metric

SWEEP_SCHEMA = "livemoments/sweep/1"
POINT_SCHEMA = "livemoments/sweep-point/1"


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the report's structs: immutable, strict."""


class Quality(_Entry):
    """What a point's pictures are worth.

    Attributes:
        images: that were restored.
        failed: that could not be, and do not count.
        metrics: over the images, against the ground truth where they need it.
        drops: by metric, how much worse than the exact fp32 result, on average over the images that both have; positive
            is worse, in the metric's unit.
        fidelity_db: PSNR against the exact fp32 result, of the mean squared error over all images, 8-bit levels;
            ``None`` for equal pictures.
        equal: every image is the exact result's, to the last level.
    """

    images: int
    failed: int
    metrics: tuple[Metric, ...]
    drops: dict[str, float]
    fidelity_db: float | None
    equal: bool


class PointCost(_Entry):
    """What restoring one photo costs, in fresh processes of ``livemoments restore``.

    Attributes:
        seconds: wall time of each process' command: checking hashes, loading, restoring, writing.
        load_seconds: of these, the part in which engines were opened.
        memory: the largest of every kind of peak over the processes.
    """

    seconds: tuple[float, ...]
    load_seconds: tuple[float, ...]
    memory: tuple[Memory, ...]


class PointResult(_Entry, kw_only=True):
    """What was measured of a point, or why nothing was; kept by content, so that another sweep finds it.

    Attributes:
        status: ``ok`` or ``failed``.
        error: what went wrong with the point, for ``failed``.
        quality: over the data set.
        cost: of one photo.
        crop: a detail of that photo, a JPEG file's name beside this one.
    """

    schema: str = POINT_SCHEMA
    status: Literal["ok", "failed"]
    error: str | None = None
    quality: Quality | None = None
    cost: PointCost | None = None
    crop: str | None = None


class Point(_Entry):
    """One point of the sweep.

    Attributes:
        id: of its bundle's digest, options, data set and machine: the name under which its result is kept.
        bundle: what the sweep calls the bundle.
        digest: the bundle's.
        bytes: of all of the bundle's files.
        values: of the axes.
        settings: every option of the restoration.
        exact: the key of the exact result that it is held against.
        command: restores the sweep's photo as the point does.
        result: what was measured.
        front: no other point is as good in every objective and better in one.
    """

    id: str
    bundle: str
    digest: str
    bytes: int
    values: dict[str, str]
    settings: dict[str, str | int | bool | None]
    exact: str
    command: str
    result: PointResult
    front: bool = False


class Exact(_Entry):
    """The exact fp32 result for one choice of tiles."""

    id: str
    settings: dict[str, str | int | bool | None]
    metrics: tuple[Metric, ...]


class Objective(_Entry):
    """A number that every point has, by which they can be compared.

    Attributes:
        name: as ``--pick`` has it.
        title: for people.
        unit: ``s``, ``bytes``, ``dB`` or ``1``.
        better: which way is good.
    """

    name: str
    title: str
    unit: str
    better: Better


class Pick(_Entry):
    """What ``--pick`` asked for and found.

    Attributes:
        expression: as it was typed.
        point: the id of the winner; ``None``: no point keeps every bound.
        detail: by what the winner was chosen; without one, what the nearest point misses.
    """

    expression: str
    point: str | None
    detail: str


class SweepReport(_Entry, kw_only=True):
    """Everything."""

    schema: str = SWEEP_SCHEMA
    livemoments: str
    created: str
    command: str
    dataset: DatasetInfo
    photo: str
    exact_bundle: str
    machine: dict[str, str | int | float]
    runs: int
    merged: int
    objectives: tuple[Objective, ...]
    compared: tuple[str, ...]
    """The objectives by which the front was made."""
    exacts: tuple[Exact, ...]
    points: tuple[Point, ...]
    pick: Pick | None = None
