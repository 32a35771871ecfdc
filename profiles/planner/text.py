"""Plans as text: what was chosen and why, its timeline, and the others."""

from __future__ import annotations

from livemoments.profiles.planner.plan import MARGIN, Plan, Plans
from livemoments.profiles.planner.timeline import Segment

_SHOWN = 8

_ENGINES = {
    "all": "all engines loaded",
    "phases": "one phase's engines at a time",
    "mapped": "one phase's engines at a time, networks in their files",
    "streamed": "one block of a network at a time",
}


def plans_text(plans: Plans) -> str:
    """For a terminal."""
    lines = [
        f"{plans.photo} photo, frames {plans.frame}, {plans.steps} steps; profile {plans.profile}",
        f"  memory: {plans.engine}, {'compared with measured peaks' if plans.measured else 'assumed, never measured'}",
        f"  time: {plans.rates}",
        "",
        *_verdict(plans),
        "",
        "one run over one tile      parameters    weights   products      moved   activations",
    ]
    for cost in plans.stages:
        lines.append(
            f"  {cost.stage:12} {cost.size:>11} {cost.parameters / 1e6:9.1f} M {_bytes(cost.weight_bytes):>10} "
            f"{_flops(cost.flops):>10} {_bytes(cost.moved_bytes):>10} {_bytes(cost.live_bytes):>13}"
        )
    shown = plans.chosen or plans.nearest
    lines += ["", "memory over time" + ("" if plans.chosen else " of the plan that takes the least")]
    for segment in shown.segments:
        lines.append(f"  {_bytes(_held(segment, shown)):>9}  {_label(segment)}")
    lines += ["", "plans, the least memory first"]
    listed = sorted(plans.plans, key=lambda plan: plan.peak_bytes)
    for plan in listed[:_SHOWN]:
        mark = "*" if plan is plans.chosen else (" " if plan.fits else "-")
        lines.append(f"{mark} {_bytes(plan.peak_bytes):>9} {_seconds(plan.seconds):>9}  {_words(plan)}")
    if len(listed) > _SHOWN:
        lines.append(f"  and {len(listed) - _SHOWN} more (--json has them all)")
    return "\n".join(lines)


def shortfall(plans: Plans) -> str:
    """Why nothing fits, and what would; for the case that nothing does."""
    nearest = plans.nearest
    reasons = []
    if plans.budget_bytes is not None and nearest.needs_bytes > plans.budget_bytes:
        reasons.append(
            f"no plan fits {_bytes(plans.budget_bytes)}: the smallest needs {_bytes(nearest.needs_bytes)}, "
            f"{nearest.over_bytes:,} bytes more"
        )
    if plans.max_seconds is not None:
        quickest = min((plan.seconds for plan in plans.plans if plan.seconds is not None), default=None)
        if quickest is None:
            reasons.append(f"whether it takes {_seconds(plans.max_seconds)} cannot be said: {plans.rates}")
        elif quickest > plans.max_seconds:
            reasons.append(f"the fastest plan takes {_seconds(quickest)}, not {_seconds(plans.max_seconds)}")
        else:
            reasons.append("what is fast enough does not fit the memory")
    return "; ".join(reasons)


def what_would_fit(plans: Plans) -> str:
    """What the user can do about :func:`shortfall`."""
    nearest = plans.nearest
    biggest = max(nearest.segments, key=lambda segment: _held(segment, nearest))
    ways = [f"allow {_bytes(nearest.needs_bytes)} (the peak is in '{biggest.label}')"]
    ways.append("export smaller tiles (export --tile)")
    if biggest.label in ("reference", "restoration"):
        ways.append("quantize the bundle (int8-weights, int4-weights)")
    return ", or ".join(ways)


def _verdict(plans: Plans) -> list[str]:
    if plans.chosen is None:
        return [shortfall(plans), f"  what would help: {what_would_fit(plans)}"]
    plan = plans.chosen
    room = "" if plans.budget_bytes is None else f" of {_bytes(plans.budget_bytes)}"
    return [
        f"fits: {_bytes(plan.peak_bytes)}{room}, {_seconds(plan.seconds)}, {_flops(plan.flops)} in {plan.tiles} tiles",
        f"  {_words(plan)}",
        f"  needs {_bytes(plan.needs_bytes)}: the peak and {MARGIN:.0%} for what a prediction is off"
        + ("" if plan.peak_bytes != plan.host_peak_bytes else f"; under 'ulimit -d', {_bytes(plan.data_bytes)}"),
        *(
            []
            if plan.exact
            else ["  approximate: no plan fits that gives the picture of per-step and the bundle's flow"]
        ),
        f"  livemoments restore BUNDLE {' '.join(plan.arguments)} …",
    ]


def _words(plan: Plan) -> str:
    engines = _ENGINES[plan.residency]
    if plan.vae_tile is not None:
        engines += f", VAE in windows of {plan.vae_tile}"
    store = ", keys and values on disk" if plan.kv_store == "disk" else ""
    flow = "RAFT" if plan.flow == "engine" else "DIS"
    return f"{plan.tiles} tiles of {plan.tile}, {plan.batch} at once, {plan.reference}, {flow}, {engines}{store}"


def _label(segment: Segment) -> str:
    where = "" if segment.group is None else f" (group {segment.group + 1})"
    parts = {**segment.host, **segment.device}
    largest = sorted(parts.items(), key=lambda entry: -entry[1])[:3]
    return f"{segment.label}{where}: " + ", ".join(f"{name} {_bytes(count)}" for name, count in largest)


def _held(segment: Segment, plan: Plan) -> int:
    return segment.device_bytes if plan.peak_bytes != plan.host_peak_bytes else segment.host_bytes


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _flops(count: float) -> str:
    return f"{count / 1e12:.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:.2f} GFLOP"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "time unknown"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
