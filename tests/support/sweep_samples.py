"""Points of a sweep with numbers of one's own, for what compares and shows them."""

from __future__ import annotations

import math

from livemoments.profiles.sweeps.report_data import Point, PointCost, PointResult, Quality
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.report_data import Memory, Metric


def sample_point(
    name: str,
    *,
    latency_s: float = 1.0,
    memory_bytes: int = 10**9,
    bytes: int = 10**8,  # noqa: A002 - as the point has it
    drop: float | None = 0.1,
    fidelity_db: float = 45.0,
    error: str | None = None,
    bundle: str | None = None,
    crop: str | None = None,
    values: dict[str, str] | None = None,
) -> Point:
    """A point whose id is its name; ``drop=None``: without ground truth."""
    metric = Metric(name="psnr_y", title="PSNR", better="higher", unit="dB", count=2, mean=None, std=None)
    if drop is not None:
        metric = Metric(name="psnr_y", title="PSNR", better="higher", unit="dB", count=2, mean=30.0 - drop, std=0.0)
    quality = Quality(
        images=2,
        failed=0,
        metrics=(metric,),
        drops={} if drop is None else {"psnr_y": drop},
        fidelity_db=None if fidelity_db == math.inf else fidelity_db,
        equal=fidelity_db == math.inf,
    )
    memory = Memory(kind="peak_rss", bytes=memory_bytes, method="made up")
    cost = PointCost(seconds=(latency_s, latency_s), load_seconds=(0.0, 0.0), memory=(memory,))
    result = PointResult(status="ok", quality=quality, cost=cost, crop=crop)
    if error is not None:
        result = PointResult(status="failed", error=error)
    return Point(
        id=name,
        bundle=bundle or name,
        digest="0" * 64,
        bytes=bytes,
        values=values or {},
        settings=RestoreOptions().to_json(),
        exact="exact",
        command=f"livemoments restore {name}",
        result=result,
    )
