"""Full size on one machine: make an sd3-medium checkpoint, export both networks in fp16, each in a fresh process.

    python benchmarks/full_size.py [--work DIR] [--tile 1024x1024]

Method. Every step is a command of its own, run as a fresh process; wall time and peak resident set come from the
operating system. Needs about 30 GB of disk. Weights are random: time and memory do not depend on them. The networks are
exported with `--verify none`: their float32 reference needs more memory than the machines this is for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import write_record

from livemoments.validate.cost.fresh_process import measure_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the bundles (default: temporary)")
    parser.add_argument("--tile", default="1024x1024")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="livemoments-full-", dir=options.work) as name:
        work = Path(name)
        checkpoint = work / "checkpoint"
        command = [sys.executable, "-m", "livemoments"]
        steps = {
            "make-checkpoint": ["make-checkpoint", str(checkpoint), "--size", "sd3-medium", "--dtype", "float16"],
            **{
                f"export {stage}": [
                    *("export", str(checkpoint), "-o", str(work / stage), "--precision", "fp16"),
                    *("--stages", stage, "--tile", options.tile, "--verify", "none"),
                ]
                for stage in ("reference", "restoration")
            },
        }
        rows = {}
        for title, arguments in steps.items():
            cost = measure_process([*command, *arguments])
            if cost.returncode:
                raise SystemExit(f"{title} failed:\n{cost.stderr}")
            target = work / title.split()[-1] if title.startswith("export") else checkpoint
            size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
            rows[title] = {
                "command": "livemoments " + " ".join(a.replace(name, "WORK") for a in arguments),
                "wall_s": round(cost.wall_s, 1),
                "peak_rss_gb": round(cost.peak_rss_bytes / 1e9, 2),
                "written_gb": round(size / 1e9, 2),
            }
            print(title, json.dumps(rows[title]), flush=True)
    print(write_record("full-size", {"steps": rows}))


if __name__ == "__main__":
    main()
