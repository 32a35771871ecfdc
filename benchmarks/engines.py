"""Engines of TensorRT for RTX, built without a GPU: time, size and memory of every stage, or of one at full size.

    python benchmarks/engines.py [--size tiny|mid|sd3-medium] [--stages STAGE,…] [--tile WxH] [--sm SM,…] [--work DIR]

Method. A random checkpoint is made and exported in fp16 with ``--target tensorrt``, each in a fresh process; then
``livemoments build`` builds each stage in a process of its own, which reports its time (parsing and building) and its
peak resident set. Weights are random: neither depends on them. What the engines do on a GPU is not measured here.
Full size (``--size sd3-medium --stages restoration``) needs about 15 GB of disk and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_record

from livemoments.types import Stage
from livemoments.validate.cost.fresh_process import ProcessCost, measure_process
from livemoments.version import version_of

TILES = {"tiny": "128x128", "mid": "512x512", "sd3-medium": "1024x1024"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TILES), default="tiny")
    parser.add_argument("--stages", default=",".join(Stage))
    parser.add_argument("--tile", help="default: 128, 512 and 1024 pixels")
    parser.add_argument("--sm", default="8.6,8.9,12.0")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the bundle (default: temporary)")
    options = parser.parse_args()
    tile = options.tile or TILES[options.size]
    with tempfile.TemporaryDirectory(prefix="livemoments-engines-", dir=options.work) as name:
        checkpoint, bundle = Path(name) / "checkpoint", Path(name) / "bundle"
        run("make-checkpoint", checkpoint, "--size", options.size, "--dtype", "float16")
        exported = run(
            *("export", checkpoint, "-o", bundle, "--target", "tensorrt", "--precision", "fp16"),
            *("--tile", tile, "--stages", options.stages, "--verify", "none"),
        )
        rows: list[dict[str, Any]] = []
        for stage in options.stages.split(","):
            built = run("build", bundle, "--engine", "rtx", "--sm", options.sm, "--stages", stage, "--json")
            (engine,) = json.loads(built.stdout)["engines"]
            row = {"stage": stage, "layers": engine["layers"], "seconds": round(engine["seconds"], 1)}
            row |= {
                "engine_mb": round(engine["bytes"] / 1e6, 1),
                "peak_rss_gb": round(engine["peak_rss_bytes"] / 1e9, 2),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    record = {
        "library": f"TensorRT for RTX {version_of('tensorrt-rtx')}",
        "checkpoint": options.size,
        "precision": "fp16",
        "tile": tile,
        "batch": 1,
        "sm": options.sm.split(","),
        "export": {"wall_s": round(exported.wall_s, 1), "peak_rss_gb": round(exported.peak_rss_bytes / 1e9, 2)},
        "engines": rows,
    }
    print(write_record(f"engines-{options.size}", record))


def run(*arguments: str | Path) -> ProcessCost:
    """A command of ``livemoments`` in a fresh process."""
    cost = measure_process([sys.executable, "-m", "livemoments", *map(str, arguments)])
    if cost.returncode:
        raise SystemExit(f"livemoments {arguments[0]} failed:\n{cost.stderr}")
    return cost


if __name__ == "__main__":
    main()
