"""The part of ``livemoments inspect`` that looks at checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from livemoments.cli.exits import EXIT_MISTAKE
from livemoments.cli.extras import needs_extra
from livemoments.cli.output import human_bytes, human_count, printable, stdout_is_ours, write_json, write_table

if TYPE_CHECKING:
    from rich.table import Table

    from livemoments.weights.inspection import Inspection, Part

_SIGNS = (
    *("inference_config.yml", "*motion*.pt", "*prompt_embeds*", "*raft*.pth"),
    *(f"{part}/*config.json" for part in ("transformer", "transformer_ref", "vae", "scheduler")),
)
"""What only a checkpoint has, in its folder or one below; one of them is enough."""


def looks_like_checkpoint(path: Path) -> bool:
    """Whether a place is meant to be a checkpoint: a configuration, or a folder with any part and no manifest."""
    if path.is_file():
        return path.suffix in (".yml", ".yaml")
    if not path.is_dir() or (path / "manifest.json").exists():
        return False
    return any(any(path.glob(place)) for sign in _SIGNS for place in (sign, f"*/{sign}"))


def inspect_checkpoint(path: Path, *, as_json: bool) -> None:
    """Print what a checkpoint holds; the exit code is 2 when it could not be exported."""
    with stdout_is_ours(), needs_extra("inspecting a checkpoint", "reference"):
        from livemoments.weights import inspection

        found = inspection.inspect_checkpoint(path)
    if as_json:
        head = {"checkpoint": found.path, "config": found.config, "exportable": found.exportable, "flow": found.flow}
        sizes = {"text_tokens": found.text_tokens, "tile": found.tile, "overlap": found.overlap, "bytes": found.bytes}
        write_json({**head, **sizes, "parts": [asdict(part) for part in found.parts]})
    else:
        _show(found)
    if not found.exportable:
        click.get_current_context().exit(EXIT_MISTAKE)


def _show(found: Inspection) -> None:
    click.echo(printable(f"checkpoint  {found.path} ({human_bytes(found.bytes)})"))
    if found.config is not None:
        click.echo(printable(f"named by    {found.config}"))
    if found.flow == "dis":
        click.echo("flow        OpenCV's DIS: the checkpoint brings no RAFT")
    click.echo(f"prompt      {f'T = {found.text_tokens}' if found.text_tokens else 'T unknown'}")
    write_table(_table(found))
    broken = [part for part in found.parts if part.state != "found"]
    for part in broken:
        click.echo(printable(f"{part.name}: {part.problem}"))
    for fix in dict.fromkeys(part.fix for part in broken):
        click.echo(printable(f"  fix: {fix}"))
    click.echo("every part is there: it can be exported" if not broken else "it cannot be exported as it is")


def _table(found: Inspection) -> Table:
    from rich.table import Table

    table = Table("part", "", "where", "type", title="Parts", title_justify="left")
    for heading in ("tensors", "parameters", "size"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for part in found.parts:
        table.add_row(
            part.name,
            part.state,
            "-" if part.path is None else printable(_relative(part, found)),
            ", ".join(part.dtypes) or "-",
            str(part.tensors) if part.tensors else "-",
            human_count(part.parameters) if part.parameters else "-",
            human_bytes(part.bytes) if part.path is not None else "-",
            part.note,
        )
    return table


def _relative(part: Part, found: Inspection) -> str:
    root = found.path if found.config is None else found.config.parent
    if part.path is None or not part.path.is_relative_to(root):
        return str(part.path)
    return str(part.path.relative_to(root))
