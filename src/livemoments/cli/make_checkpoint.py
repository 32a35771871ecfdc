"""``livemoments make-checkpoint``: a random checkpoint in upstream's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, overwrite_option, result_options
from livemoments.cli.output import human_bytes, plural, stdout_is_ours, write_json
from livemoments.progress import Progress


@click.command("make-checkpoint", short_help="Write random weights in upstream's layout.")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--size",
    type=click.Choice(["tiny", "mid", "sd3-medium"]),
    default="tiny",
    show_default=True,
    help="tiny: 4 blocks of width 128, for tests. mid: 8 blocks of width 512, for benchmarks on a CPU. "
    "sd3-medium: the published size, twice 2 billion parameters (about 9 GB in float16, 18 GB in float32).",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the weights.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Element type of the stored transformer and VAE weights.",
)
@overwrite_option
@result_options
def command(
    folder: Path,
    size: str,
    seed: int,
    dtype: Literal["float32", "float16", "bfloat16"],
    overwrite: bool,
    progress: Progress,
    as_json: bool,
) -> None:
    """Write a checkpoint with random weights in upstream's layout to DIR.

    Everything that the published model has is there (both transformers, VAE, motion encoder, RAFT, the prompt's
    embeddings), so that export, restore and validate can be tried, planned and benchmarked without the real weights.
    A restored photo is noise of course. The same size, seed and dtype give the same weights on every machine.

    Needs the extra 'reference'. With --json: {"checkpoint", "size", "seed", "dtype", "bytes", "files"}.

    \b
    Example:
      livemoments make-checkpoint build/tiny --size tiny --seed 1
    """
    with stdout_is_ours(), needs_extra("making a checkpoint", "reference"):
        from livemoments.reference.random_checkpoint import make_checkpoint

        made = Path(make_checkpoint(folder, size=size, seed=seed, dtype=dtype, overwrite=overwrite, progress=progress))
    files = [path for path in made.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    if as_json:
        write_json(
            {"checkpoint": made, "size": size, "seed": seed, "dtype": dtype, "bytes": total, "files": len(files)}
        )
    else:
        click.echo(f"wrote {made}: {size}, seed {seed}, {dtype}, {plural(len(files), 'file')}, {human_bytes(total)}")
