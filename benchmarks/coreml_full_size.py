"""Core ML packages of full size: both networks of an sd3-medium checkpoint converted in fp16, then compressed.

    python benchmarks/coreml_full_size.py [--work DIR] [--tile 1024x1024] [--blocks 6] [--recipe int4-weights-coreml]

Method. Every package is converted, and compressed, by the code of `livemoments export --target coreml` and of
`livemoments quantize`, each in a fresh process, one after the other; seconds are wall time of the process' work, the
peak is its resident set's (VmHWM). Schedule tables are folded for five step counts. Weights are random: time, memory
and sizes do not depend on them. Nothing is run: `--verify none`. Needs 12 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import write_record

from livemoments.coreml.package import Package
from livemoments.export.coreml import worker
from livemoments.export.coreml.modules import chunks
from livemoments.export.coreml.process import Answer, run_job
from livemoments.quantize.packages import worker as compressor
from livemoments.quantize.packages.compress import Target
from livemoments.quantize.packages.linears import find_linears
from livemoments.quantize.recipes import load_recipe
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.types import Stage

STEPS = (1, 2, 3, 4, 6)
BLOCKS = 24


def row(answer: Answer) -> dict[str, float]:
    """What is recorded of a process."""
    return {
        "seconds": answer.seconds,
        "peak_rss_gb": round(answer.peak_rss_bytes / 1e9, 2),
        "package_mb": round(answer.package_bytes / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the packages (default: temporary)")
    parser.add_argument("--tile", default="1024x1024")
    parser.add_argument("--blocks", type=int, default=6, help="transformer blocks in a package")
    parser.add_argument("--recipe", default="int4-weights-coreml")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="livemoments-full-", dir=options.work) as name:
        work = Path(name)
        make_checkpoint(work / "checkpoint", size="sd3-medium", dtype="float16")
        for stage in (Stage.RESTORATION, Stage.REFERENCE):
            for span in chunks(BLOCKS, options.blocks):
                title = f"{stage} {span[0]}-{span[1]}"
                source, small = work / "source.mlpackage", work / "small.mlpackage"
                job = worker.Job(
                    checkpoint=str(work / "checkpoint"),
                    precision="fp16",
                    steps=STEPS,
                    stage=stage,
                    size=options.tile,
                    span=span,
                    package=str(source),
                )
                converted = run_job(worker.__name__, job, work, title)
                function = Package.open(source).functions["main"]
                linears = [x for x in find_linears(function, str(stage)) if not recipe.keeps(x.id.weight)]
                compress = compressor.Job(
                    source=str(source),
                    package=str(small),
                    targets={"main": tuple(Target(linear.constant) for linear in linears)},
                    recipe=recipe,
                )
                compressed = run_job(compressor.__name__, compress, work, title)
                rows[title] = {
                    "parameters": converted.parameters,
                    "fp16": row(converted),
                    options.recipe: row(compressed) | {"linears": len(linears)},
                }
                kinds = ("fp16", options.recipe)
                total = {kind: round(sum(entry[kind]["package_mb"] for entry in rows.values()), 1) for kind in kinds}
                # Written after each package: a run is long.
                record = {"tile": options.tile, "packages": rows, "total_mb": total}
                print(title, json.dumps(rows[title]), write_record("coreml-full-size", record), flush=True)


if __name__ == "__main__":
    main()
