"""The cost half of ``--baseline``: latency and memory on the same machine, the bundle's size anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from livemoments.validate.report.differences import held, missing, noted
from livemoments.validate.report.noise import NOISE, allowed_slowdown
from livemoments.validate.report.numbers import format_change, format_seconds
from livemoments.validate.report_data import Cost, Difference, ValidationReport

_HARDWARE = ("processor", "cores", "usable_cores", "cpu_governor", "system")
_GRAPHICS = "gpu"
"""Keys of a machine's description that say what it computes with; those of graphics cards start like this."""
_MATTER = ("batch", "flow", "kv_dtype", "kv_store", "reference", "steps", "threads", "tile", "tile_plan")
"""Settings that change what is timed."""


def compare_cost(report: ValidationReport, baseline: ValidationReport) -> Iterator[Difference]:
    """Latency and peaks of both runs; ``info`` on another machine, and for what differs in kind."""
    if baseline.cost is None:
        return
    if report.cost is None:
        yield missing("cost", None, "1", "latency and memory")
        return
    other = _other_machine(report, baseline)
    if other:
        yield noted("machine", None, None, "1", f"{other}; latency and memory are not compared")
    why_not = "not compared" if other else ""
    yield from _compare_latency(report.cost, baseline.cost, why_not)
    yield from _compare_memory(report.cost, baseline.cost, why_not)


def hardware_of(machine: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """What a machine's description says of what it computes with: where this differs, times are not comparable."""
    graphics = sorted(key for key in machine if key.startswith(_GRAPHICS))
    return {key: machine[key] for key in (*_HARDWARE, *graphics) if key in machine}


def compare_size(report: ValidationReport, baseline: ValidationReport) -> Iterator[Difference]:
    """The bundle's bytes; the stage that grew most is named."""
    before, now = baseline.bundle, report.bundle
    allowed = NOISE.size * before.bytes
    worse = now.bytes - before.bytes > allowed
    grown = {name: size - before.files.get(name, 0) for name, size in now.files.items()}
    most = max(grown, key=grown.__getitem__, default=None)
    detail = f"larger by {format_change(before.bytes, now.bytes, 'bytes')[1:]}" if worse else ""
    if worse and most is not None:
        detail += f", most of all {most}"
    yield held("bundle bytes", float(before.bytes), float(now.bytes), allowed, "bytes", worse=worse, detail=detail)


def _other_machine(report: ValidationReport, baseline: ValidationReport) -> str:
    """Why times cannot be held against each other; empty if they can."""
    new, old = hardware_of(report.machine), hardware_of(baseline.machine)
    parts = [f"{key} was {old.get(key)}, is {new.get(key)}" for key in {**new, **old} if old.get(key) != new.get(key)]
    if report.bundle.provider != baseline.bundle.provider:
        parts.append(f"provider was {baseline.bundle.provider}, is {report.bundle.provider}")
    parts += [
        f"setting {key} was {baseline.settings.get(key)}, is {report.settings.get(key)}"
        for key in _MATTER
        if baseline.settings.get(key) != report.settings.get(key)
    ]
    return f"another machine or setting: {'; '.join(parts)}" if parts else ""


def _compare_latency(new: Cost, old: Cost, why_not: str) -> Iterator[Difference]:
    now = _latencies(new)
    for name, before in _latencies(old).items():
        if name in now:
            allowed = allowed_slowdown(before[0], before, now[name])
            yield _slower(name, before[0], now[name][0], allowed, why_not)
        else:
            yield missing(name, before[0], "s")
    if old.photo_s is not None:
        if new.photo_s is None:
            yield missing("latency photo", old.photo_s, "s")
        else:
            other_photo = why_not or (
                "" if old.photo == new.photo else f"another photo: was {old.photo}, is {new.photo}"
            )
            yield _slower("latency photo", old.photo_s, new.photo_s, NOISE.single_run * old.photo_s, other_photo)


def _latencies(cost: Cost) -> dict[str, tuple[float, float]]:
    """p50 and p90 in seconds, by name."""
    latencies = {f"latency {stage.stage} {stage.size}": (stage.p50_s, stage.p90_s) for stage in cost.stages}
    if (p50_s := cost.tile_s.get("p50")) is not None:
        latencies["latency tile"] = (p50_s, cost.tile_s.get("p90", p50_s))
    return latencies


def _slower(name: str, before_s: float, now_s: float, allowed_s: float, why_not: str) -> Difference:
    if why_not:
        return noted(name, before_s, now_s, "s", why_not)
    worse = now_s - before_s > allowed_s
    detail = f"slower by {format_seconds(now_s - before_s)}, noise is {format_seconds(allowed_s)}" if worse else ""
    return held(name, before_s, now_s, allowed_s, "s", worse=worse, detail=detail)


def _compare_memory(new: Cost, old: Cost, why_not: str) -> Iterator[Difference]:
    now = {memory.kind: memory for memory in new.memory}
    for before in old.memory:
        if before.bytes is None:
            continue
        after, name = now.get(before.kind), f"memory {before.kind}"
        measured = None if after is None or after.bytes is None else float(after.bytes)
        if why_not:
            yield noted(name, float(before.bytes), measured, "bytes", why_not)
        elif measured is None:
            yield missing(name, float(before.bytes), "bytes", "" if after is None else after.method)
        else:
            allowed = NOISE.memory * before.bytes
            worse = measured - before.bytes > allowed
            detail = f"larger by {format_change(before.bytes, measured, 'bytes')[1:]}" if worse else ""
            yield held(name, float(before.bytes), measured, allowed, "bytes", worse=worse, detail=detail)
