"""The benchmark's command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

import torch
from bench_networks import Setup

from livemoments.reference.checkpoint_sizes import SIZES

_MISUSE = 2


def leave(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    sys.stderr.write(f"{message}\n")
    sys.exit(_MISUSE)


def parse_arguments(argv: list[str] | None, description: str | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--size", choices=sorted(SIZES), default="sd3-medium")
    parser.add_argument("--tile", type=int, metavar="PX", help="side of the tile (default: 1024; tiny: 64)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="tiles at once (default: 1)")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="timed runs per case (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="runs before those (default: 2)")
    parser.add_argument(
        "--budget-s",
        type=float,
        default=480.0,
        metavar="S",
        help="seconds in all, of which every group gets its share (default: 480)",
    )
    parser.add_argument("--group", action="append", metavar="NAME", help="only cases of this group; may be repeated")
    parser.add_argument(
        "--compile-backend", metavar="NAME", help="of torch.compile (default: inductor; on a CPU: eager)"
    )
    parser.add_argument("--commit", metavar="HASH", help="of these sources, where their history was not copied")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results here, as JSON")
    parser.add_argument(
        "--dry-run", action="store_true", help="everything at tiny size on the CPU, in float32, twice each"
    )
    arguments = parser.parse_args(argv)
    if arguments.dry_run:
        arguments.device, arguments.size, arguments.dtype = "cpu", "tiny", "float32"
        arguments.repeats, arguments.warmup = 2, 0
        torch.set_num_threads(1)
    return arguments


def make_setup(arguments: argparse.Namespace) -> Setup:
    """What the command line asks for; leaves with exit code 2 and one line where it cannot be."""
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        leave("no CUDA device: PyTorch sees none (try --dry-run, which needs none)")
    sizes = SIZES[arguments.size]
    tile_px = arguments.tile or (64 if arguments.size == "tiny" else 1024)
    most_px = sizes.pos_embed_max_size * sizes.token_px
    if tile_px % (2 * sizes.token_px) or not 2 * sizes.token_px <= tile_px <= most_px:
        leave(f"--tile {tile_px}: must be a multiple of {2 * sizes.token_px} and at most {most_px}")
    if min(arguments.batch, arguments.repeats) < 1:
        leave("--batch and --repeats must be at least 1")
    setup = Setup(sizes, tile_px, device, getattr(torch, arguments.dtype), arguments.batch)
    arguments.compile_backend = arguments.compile_backend or ("inductor" if device.type == "cuda" else "eager")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return setup
