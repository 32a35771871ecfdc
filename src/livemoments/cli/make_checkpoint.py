"""``livemoments make-checkpoint``: a random checkpoint in upstream's layout, or the trained small one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, overwrite_option, result_options
from livemoments.cli.output import human_bytes, plural, stdout_is_ours, write_json
from livemoments.errors import UsageError
from livemoments.progress import Progress

_TRAINED_DTYPE: Literal["float16"] = "float16"


@click.command("make-checkpoint", short_help="Write random or small trained weights in upstream's layout.")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option(
    "--size",
    type=click.Choice(["small", "tiny", "mid", "sd3-medium"]),
    default="tiny",
    show_default=True,
    help="small: trained, it restores; 4 blocks of width 192, comes with the package. The others are random. "
    "tiny: 4 blocks of width 128, for tests. mid: 8 blocks of width 512, for benchmarks on a CPU. "
    "sd3-medium: the published size, twice 2 billion parameters (about 9 GB in float16, 18 GB in float32).",
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of the random weights.  [default: 0]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Element type of random transformer and VAE weights.  [default: float32]",
)
@overwrite_option
@result_options
def command(
    folder: Path,
    size: str,
    seed: int | None,
    dtype: Literal["float32", "float16", "bfloat16"] | None,
    overwrite: bool,
    progress: Progress,
    as_json: bool,
) -> None:
    """Write a checkpoint in upstream's layout to DIR: a random one, or the trained one of size small.

    Everything that the published model has is there (both transformers, VAE, motion encoder, RAFT, the prompt's
    embeddings), so that export, restore and validate can be tried, planned and benchmarked without the real weights.
    With random weights a restored photo is noise of course; the same size, seed and dtype give the same weights on
    every machine. small has no RAFT (its flow is OpenCV's DIS); what it was trained on and what it gains is in DIR's
    README.md.

    Random sizes need the extra 'reference'. With --json: {"checkpoint", "size", "seed", "dtype", "bytes", "files"};
    seed is null for small.

    \b
    Examples:
      livemoments make-checkpoint build/small --size small
      livemoments make-checkpoint build/tiny --size tiny --seed 1
    """
    if size == "small":
        made = _copy(folder, seed, dtype, overwrite=overwrite)
        dtype = _TRAINED_DTYPE
    else:
        seed, dtype = seed or 0, dtype or "float32"
        with stdout_is_ours(), needs_extra("making a checkpoint", "reference"):
            from livemoments.reference.random_checkpoint import make_checkpoint

            made = Path(
                make_checkpoint(folder, size=size, seed=seed, dtype=dtype, overwrite=overwrite, progress=progress)
            )
    files = [path for path in made.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    if as_json:
        write_json(
            {"checkpoint": made, "size": size, "seed": seed, "dtype": dtype, "bytes": total, "files": len(files)}
        )
    else:
        origin = "trained" if seed is None else f"seed {seed}"
        click.echo(f"wrote {made}: {size}, {origin}, {dtype}, {plural(len(files), 'file')}, {human_bytes(total)}")


def _copy(folder: Path, seed: int | None, dtype: str | None, *, overwrite: bool) -> Path:
    from livemoments.checkpoints import copy_trained_checkpoint

    if seed is not None or dtype not in (None, _TRAINED_DTYPE):
        raise UsageError(
            f"small is trained: it has no seed, and is {_TRAINED_DTYPE}", fix="leave --seed and --dtype out"
        )
    return copy_trained_checkpoint(folder, "small", overwrite=overwrite)
