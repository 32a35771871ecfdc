"""``livemoments plan``: what a photo will take in memory and time, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import msgspec

from livemoments.bundle import Bundle
from livemoments.cli.exits import EXIT_CHECK_FAILED
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import BYTES, FILE, PATH, POLICY, SIZE, BadValue, json_option
from livemoments.cli.output import stdout_is_ours, write_json
from livemoments.types import ReferencePolicy, Size

_UNITS_S = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}


class _SecondsType(click.ParamType):
    """A time with s, min or h; seconds without."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d{1,7}(?:\.\d{1,6})?)\s*(s|min|h|)\s*", value)
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
        if seconds <= 0:
            raise BadValue(f"'{value}' is not a time", fix="write e.g. 10s, 2min or 90", param=param, ctx=ctx)
        return seconds


@click.command("plan", short_help="Say what a photo will take in memory and time, before anything runs.")
@click.argument("bundle", type=PATH)
@click.option("--photo", metavar="WxH", type=SIZE, default="4096x3072", show_default=True, help="The photo's size.")
@click.option(
    "--frame", metavar="WxH", type=SIZE, help="The video frames' size.  [default: the photo's shape, 1920 px long]"
)
@click.option(
    "--profile",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="The device: a name that 'livemoments devices' lists, auto for this machine, or a .toml file of your own.",
)
@click.option(
    "--max-memory",
    type=BYTES,
    help="What may be used: of the accelerator's memory, or by the process.  [default: the profile's budget; on a CPU "
    "nine tenths of this machine's]",
)
@click.option("--max-time", type=_SecondsType(), help="What the photo may take, e.g. 10s.")
@click.option(
    "--reference", type=POLICY, help="Only this policy.  [default: the profile's, or phase-split for per-step]"
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Sampling steps.  [default: the profile's]")
@click.option("--tile", type=SIZE, help="Only this tile size of the bundle.  [default: every one it has]")
@click.option(
    "--recipe",
    type=click.Choice(["int8-weights", "int4-weights"]),
    help="Plan as if the bundle had been quantized so.",
)
@click.option("--svg", metavar="FILE", type=FILE, help="Write the memory timeline as a picture.")
@json_option
def command(
    bundle: Path,
    photo: Size,
    frame: Size | None,
    profile: str,
    max_memory: int | None,
    max_time: float | None,
    reference: ReferencePolicy | None,
    steps: int | None,
    tile: Size | None,
    recipe: str | None,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Predict what restoring a photo with BUNDLE takes, and choose the fastest way that fits.

    Only the bundle's manifest and graphs are read; its weights may be missing. Compared are the bundle's tile sizes,
    batches, which engines are loaded at once, and the VAE in windows. The chosen plan's arguments for 'livemoments
    restore' are printed.

    Exit code 1 if nothing fits: by how many bytes, and what would. Needs the extra 'plan'; no PyTorch.

    With --json: {"chosen": PLAN or null, "plans": [...], "stages": [...], "budget_bytes", …}.

    \b
    Examples:
      livemoments plan bundle
      livemoments plan bundle --profile rtx-4060-8gb --photo 4096x3072 --max-time 60s --svg timeline.svg
    """
    with stdout_is_ours(), needs_extra("planning", "plan"):
        from livemoments.profiles.apply import find_profile
        from livemoments.profiles.machine import usable_cores, usable_memory_bytes
        from livemoments.profiles.planner.plan import PlanRequest, make_plans
        from livemoments.profiles.planner.svg import plan_svg
        from livemoments.profiles.planner.text import plans_text, shortfall, what_would_fit
        from livemoments.store.files import write_file

        device = find_profile(profile)
        if max_memory is None and device.budget_bytes is None:
            max_memory = usable_memory_bytes() * 9 // 10
        request = PlanRequest(
            photo=photo,
            frame=frame,
            max_memory_bytes=max_memory,
            max_seconds=max_time,
            reference=None if reference is None else str(reference),
            steps=steps,
            tile=tile,
            cores=usable_cores(),
            recipe=recipe,
        )
        plans = make_plans(Bundle.open(bundle, verify_hashes=False, engines=False, weights=False), device, request)
        if svg is not None:
            write_file(svg, plan_svg(plans, plans.chosen or plans.nearest).encode())
    if as_json:
        document = msgspec.to_builtins(plans)
        if plans.chosen is None:
            document |= {"shortfall": shortfall(plans), "what_would_fit": what_would_fit(plans)}
        write_json(document)
    else:
        click.echo(plans_text(plans))
        if svg is not None:
            click.echo(f"\nwrote {svg}")
    if plans.chosen is None:
        click.get_current_context().exit(EXIT_CHECK_FAILED)
