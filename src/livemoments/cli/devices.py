"""``livemoments devices``: what this machine is, and the device profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from livemoments.cli.options import json_option
from livemoments.cli.output import human_bytes, stdout_is_ours, write_json, write_table

if TYPE_CHECKING:
    from livemoments.profiles.machine import Device
    from livemoments.profiles.schema import Profile


@click.command("devices", short_help="What this machine is, and which profile it takes.")
@click.argument("profile", metavar="[PROFILE]", required=False)
@json_option
def command(profile: str | None, as_json: bool) -> None:
    """Show this machine's devices and the profile that each takes, and list all profiles.

    With PROFILE, a name from the list or a .toml file of your own, check it and show everything in it.

    With --json: {"devices": [...], "default": NAME, "profiles": [...]}, or the profile.

    \b
    Examples:
      livemoments devices
      livemoments devices rtx-4060-8gb
      livemoments devices my-device.toml
    """
    with stdout_is_ours():
        from livemoments.profiles.machine import default_profile, find_devices
        from livemoments.profiles.read import NAMES, load_profile

        if profile is not None:
            shown = load_profile(profile)
        else:
            found, default = find_devices(), default_profile().name
            profiles = [load_profile(name) for name in NAMES]
    if profile is not None:
        write_json(msgspec.to_builtins(shown)) if as_json else click.echo(_description(shown))
    elif as_json:
        write_json(
            {"devices": msgspec.to_builtins(found), "default": default, "profiles": msgspec.to_builtins(profiles)}
        )
    else:
        _print_all(found, default, profiles)


def _print_all(devices: tuple[Device, ...], default: str, profiles: list[Profile]) -> None:
    from rich.table import Table

    for device in devices:
        memory = "" if device.memory_bytes is None else f", {human_bytes(device.memory_bytes)}"
        extra = f", {', '.join(device.instructions)}" if device.instructions else ""
        state = "" if device.usable else f"; the installed onnxruntime has no provider '{device.provider}'"
        click.echo(f"{device.kind}: {device.name}{memory}{extra}{state}")
        click.echo(f"  profile: {device.profile or 'none fits; write one (docs/profiles.md)'}")
    click.echo(f"by default (--profile auto): {default}\n")
    table = Table("profile", "device", "budget", "precision", "tile", "reference", "engines loaded", "measured")
    for profile in profiles:
        budget = profile.budget_bytes
        table.add_row(
            profile.name,
            profile.title,
            "the machine's" if budget is None else human_bytes(budget),
            profile.recipe or profile.base_precision,
            ", ".join(profile.tiles.sizes),
            profile.restore.reference,
            "all" if profile.restore.residency == "all" else "a phase's",
            f"{len(profile.measured)} records" if len(profile.measured) != 1 else "1 record",
        )
    write_table(table)


def _description(profile: Profile) -> str:
    lines = [f"{profile.name}: {profile.title}"]
    if profile.note:
        lines.append(f"  {profile.note}")
    measured = {key: entry for entry in profile.measured for key in entry.of}
    for table in ("memory", "engine", "precision", "tiles", "restore", "efficiency", "achieved"):
        for key, value in msgspec.to_builtins(getattr(profile, table)).items():
            if value is None:
                continue
            shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            record = measured.get(f"{table}.{key}")
            lines.append(f"  {table}.{key}: {shown}{'' if record is None else f'  (measured: {record.record})'}")
    for source in profile.chip.sources:
        for key in source.of:
            value = getattr(profile.chip, key, None)
            if value is not None:
                note = f"; {source.note}" if source.note else ""
                lines.append(f"  chip.{key}: {value:g}  ({source.url}{note})")
    return "\n".join(lines)
