"""``livemoments fetch``: the published weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import FILE, PATH, BadValue, result_options
from livemoments.cli.output import human_bytes, plural, printable, stdout_is_ours, write_json
from livemoments.progress import Progress
from livemoments.weights.sources import PARTS, VARIANTS

if TYPE_CHECKING:
    from livemoments.weights.sources import PartName, Variant


class PartsType(click.ParamType):
    """Names of parts with commas between them."""

    name = "PART,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[PartName, ...]:
        """The parts, in their own order."""
        if isinstance(value, tuple):
            return value
        names = [part.strip() for part in value.split(",")]
        for name in names:
            if name not in PARTS:
                raise BadValue(f"'{name}' is not a part", fix=f"use {', '.join(PARTS)}", param=param, ctx=ctx)
        return tuple(part for part in PARTS if part in names)


@click.command("fetch", short_help="Bring the published weights.")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--only", type=PartsType(), help=f"Bring these parts only: {', '.join(PARTS)}.  [default: all]")
@click.option(
    "--text-encoders",
    "encoders",
    type=click.Choice(VARIANTS),
    default="fp16",
    show_default=True,
    help="Which files of Stable Diffusion 3's text encoders: halves, floats (twice as large), or clip: halves without "
    "T5, for 'make-prompt --without-t5'.",
)
@click.option("--raft", type=FILE, metavar="FILE", help="RAFT's Sintel weights (raft-sintel.pth), if you have them.")
@click.option("--latest", is_flag=True, help="Take the repositories' newest revisions instead of the pinned ones.")
@click.option("--overwrite", is_flag=True, help="Replace files that differ and that fetch did not bring, too.")
@result_options
def command(
    folder: Path,
    only: tuple[PartName, ...] | None,
    encoders: Variant,
    raft: Path | None,
    latest: bool,
    overwrite: bool,
    progress: Progress,
    as_json: bool,
) -> None:
    """Bring the published weights into DIR, in the layout that export reads.

    LiveMoments' transformers and motion encoder, the VAE, scheduler and text encoders of Stable Diffusion 3 medium
    (gated: accept its licence on the hub first, then 'hf auth login' or HF_TOKEN), and RAFT's Sintel weights.
    About 29 GB; docs/weights.md says what of it can be deleted when, and under which licences it is.

    Every file is compared with its published hash. Run again, it goes on where it was interrupted, keeps what is right
    and mends what is not; DIR/fetched.json says what was fetched. No token is ever written.

    Needs the extra 'hub'. With --json: {"folder", "bytes", "files"}, each of the files {"path", "bytes", "sha256",
    "source", "revision", "published", "state"}.

    \b
    Examples:
      livemoments fetch checkpoint
      livemoments fetch checkpoint --only raft --raft RAFT/models/raft-sintel.pth
    """
    with stdout_is_ours(), needs_extra("fetching weights", "hub"):
        from livemoments.weights.fetch import fetch

        done = fetch(
            folder, only=only, encoders=encoders, raft=raft, latest=latest, overwrite=overwrite, progress=progress
        )
    total = sum(file.bytes for file in done)
    if as_json:
        write_json({"folder": folder, "bytes": total, "files": [asdict(file) for file in done]})
        return
    new = sum(file.state == "fetched" for file in done)
    click.echo(printable(f"{folder}: {plural(len(done), 'file')}, {human_bytes(total)}, {new} of them fetched now"))
    click.echo(printable(f"next: livemoments inspect {folder}"))
