"""Upstream's way against ours on one GPU with PyTorch: latency per tile, peak memory, fraction of the chip's rate.

Needs PyTorch 2.5 or newer, numpy, safetensors and this checkout; diffusers, where it is there, serves the VAE and
upstream's way through diffusers' own modules. Weights are random and made on the device: neither latency nor memory
depends on them. README.md beside this file says how to run it and what the results mean.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_path import make_importable

PACKAGE_FROM = make_importable()

from bench_arguments import leave, make_setup, parse_arguments  # noqa: E402
from bench_cases import Bench  # noqa: E402
from bench_environment import describe_environment  # noqa: E402
from bench_plan import GROUPS, plan  # noqa: E402
from bench_run import run_all  # noqa: E402
from bench_table import print_table  # noqa: E402
from gpu_state import read_clocks, write_json  # noqa: E402

SCHEMA_VERSION = 2


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done (perhaps not everything, within the budget); 1: a case failed or missed its limit."""
    arguments = parse_arguments(argv, __doc__)
    bench = Bench(make_setup(arguments), arguments.repeats, arguments.warmup, arguments.compile_backend)
    cases = plan(bench)
    if unknown := set(arguments.group or ()) - set(GROUPS):
        leave(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    wanted = [case for case in cases if not arguments.group or case.group in {*arguments.group, "ceilings"}]
    head = {
        "schema_version": SCHEMA_VERSION,
        "environment": describe_environment(bench.setup.device, PACKAGE_FROM, arguments.commit),
        "settings": {
            "command": [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)],
            "size": arguments.size,
            "sizes": asdict(bench.setup.sizes),
            "tile_px": bench.setup.tile_px,
            "image_tokens": bench.setup.image_tokens,
            "prompt_tokens": bench.setup.sizes.prompt_tokens,
            "batch": bench.setup.batch,
            "dtype": arguments.dtype,
            "repeats": arguments.repeats,
            "warmup": arguments.warmup,
            "compile_backend": bench.backend,
        },
    }

    def save(found: dict[str, Any]) -> None:
        if arguments.output:
            write_json(arguments.output, head | found | {"clocks_after": read_clocks()})

    results = head | run_all(bench, wanted, arguments.budget_s, save)
    save(results)
    print_table(results)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
