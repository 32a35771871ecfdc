"""A validation report as data: what ``livemoments validate`` measures, and what every writer and gate reads.

The structs are strict (unknown fields are errors) and immutable; :func:`decode_report` checks a file against them.
Numbers that could not be measured are ``None`` with a reason beside them, never a stand-in. Infinite decibels (equal
arrays) are ``None`` in JSON, and ``exact`` or the passed check says why.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

REPORT_SCHEMA = "livemoments/validation/1"

Better = Literal["higher", "lower"]
Status = Literal["pass", "fail", "info"]
"""``info``: measured, and no limit applies."""
Level = Literal["block", "network", "step", "tile", "photo"]
LEVELS: tuple[Level, ...] = ("block", "network", "step", "tile", "photo")
"""Of the parity ladder, from the smallest part to the whole."""


def finite_number(value: float | None) -> float | None:
    """The number as a report holds it: ``None`` for NaN and infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the report's structs: immutable, strict."""


class Check(_Entry):
    """One number held against one limit: what the gate decides by.

    Attributes:
        name: unique in the report, dotted from the general to the particular: ``parity.network.restoration.1024x1024``,
            ``quality.psnr_y``, ``self.second_run``, ``cost.restoration.p50_s``, ``images.failed``.
        value: what was measured; ``None`` if it is not finite.
        limit: what it is held against; ``None`` for ``info``.
        unit: ``rel_l2``, ``dB``, ``s``, ``bytes``, ``count``, ``1`` …
        better: which way is good.
        status: the verdict.
        detail: one sentence for a reader: where the worst value was, or why it fails.
    """

    name: str
    value: float | None
    limit: float | None
    unit: str
    better: Better
    status: Status
    detail: str = ""


class Rung(_Entry):
    """One row of the parity ladder.

    Attributes:
        level: ``block``, ``network``, ``step``, ``tile`` or ``photo``.
        name: what was compared, e.g. ``restoration``, ``restoration.block3``, ``step2.velocity``, ``tile0.decoded``.
        size: tile size ``WxH``, or the photo's.
        rel_l2: ``||engine - reference|| / ||reference||``.
        sqnr_db: ``-20 log10(rel_l2)``; ``None`` for equal arrays.
        cosine: of the flattened tensors.
        max_abs: largest absolute difference.
        psnr_db: for images (peak 1 or 255, as the image has it); ``None`` for other tensors and for equal ones.
        limit: of ``rel_l2`` or of ``psnr_db``, as ``limit_of`` says; ``None``: informative.
        limit_of: ``rel_l2`` or ``psnr_db``.
        status: the verdict.
        where: the worst output and schedule point.
    """

    level: Level
    name: str
    size: str
    rel_l2: float | None
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    psnr_db: float | None = None
    limit: float | None = None
    limit_of: Literal["rel_l2", "psnr_db"] = "rel_l2"
    status: Status = "info"
    where: str = ""

    @property
    def value(self) -> float | None:
        """What the limit is of."""
        return self.psnr_db if self.limit_of == "psnr_db" else self.rel_l2

    @property
    def unit(self) -> str:
        """The unit of ``value`` and ``limit``."""
        return "dB" if self.limit_of == "psnr_db" else "rel_l2"

    @property
    def better(self) -> Better:
        """Which way ``value`` is good."""
        return "higher" if self.limit_of == "psnr_db" else "lower"


class Suspect(_Entry):
    """Where an engine leaves the reference: the first block, module and ONNX node past the limit.

    Attributes:
        stage: of the bundle.
        point: the schedule point at which it was found; ``None`` for stages that take no step.
        block: e.g. ``transformer_blocks.3``; ``None`` if the fault lies outside of blocks.
        module: the checkpoint's name of the module, e.g. ``transformer_blocks.3.ff.net.0``; ``None`` if the reference's
            inner tensors were not at hand.
        node: the ONNX node's name; ``op`` its operator; ``output`` the value that it gives.
        rel_l2: error there.
        limit: what it passed.
        before: error of what goes into it, which is within the limit.
    """

    stage: str
    point: int | None
    block: str | None
    module: str | None
    node: str | None
    op: str | None
    output: str | None
    rel_l2: float | None
    limit: float
    before: float | None


class Bisection(_Entry):
    """What ``--bisect`` found; ``suspects`` is empty if every boundary was within its limit."""

    suspects: tuple[Suspect, ...]
    boundaries: int
    detail: str = ""


class Metric(_Entry):
    """One quality metric over the data set.

    Attributes:
        name: ``psnr_y``, ``ssim_y``, ``ms_ssim_y``, ``lpips``, ``niqe_re``, ``fid_512`` …
        title: for people, with the convention where there are several, e.g. ``PSNR (y, BT.601 studio)``.
        better: which way is good.
        unit: ``dB`` or ``1``.
        count: images that it was measured on.
        mean, std: over the images (``std`` of one image is 0); ``None`` where nothing was measured.
        input_mean: the same metric of the bicubically upscaled input, where that means something.
        status: ``ok``, or why there is no number (``weights not found: …``, ``needs ground truth``).
    """

    name: str
    title: str
    better: Better
    unit: str
    count: int
    mean: float | None
    std: float | None
    input_mean: float | None = None
    status: str = "ok"


class ImageResult(_Entry):
    """One image of the data set: written when it is finished, so that a killed run goes on behind it.

    Attributes:
        name: as in the data set.
        status: ``ok`` or ``failed``.
        error: what was wrong with it, for ``failed``.
        width, height: of the result, in pixels.
        tiles: how many.
        metrics: by metric name; ``None``: could not be measured for this image (no ground truth).
        input_metrics: the same of the bicubically upscaled input.
        parity_psnr_db: against the reference's photo, where there is one; ``None`` also for equal photos.
        seam: gradient across tile borders over the gradient beside them (1: no seam); ``None`` with one tile.
        pcr: ``mean_shift_px``, ``clamp_rate`` and, where a fp32 flow was at hand, ``corners_differ``.
        seconds: wall time of the restoration.
        tile_seconds: of each tile.
        files: pictures kept for the report, by role (``output``, ``input``, ``reference``, ``truth``, ``error``),
            relative to the report's folder.
        worker: which process or machine did it.
    """

    name: str
    status: Literal["ok", "failed"]
    error: str | None = None
    width: int = 0
    height: int = 0
    tiles: int = 0
    metrics: dict[str, float | None] = {}
    input_metrics: dict[str, float | None] = {}
    parity_psnr_db: float | None = None
    seam: float | None = None
    pcr: dict[str, float] = {}
    seconds: float = 0.0
    tile_seconds: tuple[float, ...] = ()
    files: dict[str, str] = {}
    worker: str = ""


class StageCost(_Entry):
    """Latency of one stage at one tile size: seconds of single runs, after a warm-up."""

    stage: str
    size: str
    runs: int
    p50_s: float
    p90_s: float
    p99_s: float
    load_s: float
    bytes: int


class Memory(_Entry):
    """One peak, and how it was measured.

    Attributes:
        kind: ``peak_rss`` (of a fresh process), ``vram`` (NVML), ``runtime_vram`` (the runtime's own counters),
            ``footprint`` (Apple).
        bytes: the peak; ``None`` where it cannot be measured here.
        method: how, or why not.
    """

    kind: str
    bytes: int | None
    method: str


class Cost(_Entry):
    """What a restoration costs on this machine.

    Attributes:
        stages: per stage and size.
        tile_s: one whole tile (all stages and steps), seconds at p50, p90 and p99.
        tiles_per_s: ``1 / p50`` of a whole tile.
        photo_s: wall time of a whole photo; ``photo`` its size ``WxH``.
        load_s: all engines.
        memory: every peak that was asked for.
        energy_j: per tile, through NVML; ``None`` without.
        energy_method: how the energy was counted, or why not.
        clocks: processor or GPU clocks in MHz at the start and the end, where they can be read.
        load_average: of the machine at the start and the end (1 minute), so that a noisy run can be told.
    """

    stages: tuple[StageCost, ...]
    tile_s: dict[str, float]
    tiles_per_s: float | None
    photo_s: float | None
    photo: str | None
    load_s: float
    memory: tuple[Memory, ...]
    energy_j: float | None = None
    energy_method: str = ""
    clocks: dict[str, float] = {}
    load_average: tuple[float, ...] = ()


class BundleInfo(_Entry):
    """The bundle that was validated; ``files`` are bytes by stage."""

    name: str
    digest: str
    precision: str
    recipe: str | None
    target: str
    policy: str
    provider: str
    bytes: int
    files: dict[str, int]


class DatasetInfo(_Entry):
    """The images: ``sha256`` over names and contents, ``descriptor`` names a known set (``synlive260`` …)."""

    name: str
    descriptor: str | None
    images: int
    has_truth: bool
    sha256: str


class PaperRow(_Entry):
    """One published row beside ours, by our metric names; source: the paper's table."""

    method: str
    table: str
    values: dict[str, float]


class Difference(_Entry):
    """One check compared with an earlier report's (``--baseline``)."""

    name: str
    before: float | None
    now: float | None
    allowed: float
    unit: str
    status: Status
    detail: str = ""


class ValidationReport(_Entry, kw_only=True):
    """Everything. ``passed`` is the gate: no check, rung or difference failed."""

    schema: str = REPORT_SCHEMA
    livemoments: str = ""
    created: str = ""
    bundle: BundleInfo
    reference: str | None = None
    dataset: DatasetInfo | None = None
    settings: dict[str, str | int | float | bool | None] = {}
    machine: dict[str, str | int | float] = {}
    checks: tuple[Check, ...] = ()
    ladder: tuple[Rung, ...] = ()
    bisection: Bisection | None = None
    metrics: tuple[Metric, ...] = ()
    images: tuple[ImageResult, ...] = ()
    cost: Cost | None = None
    paper: tuple[PaperRow, ...] = ()
    baseline: tuple[Difference, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return "fail" not in {entry.status for part in (self.checks, self.ladder, self.baseline) for entry in part}

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data; reports of :func:`livemoments.validate_bundle` have no infinities."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document
