"""Predicted against measured peak memory at the published size: networks of holes, restored on the CPU.

    python tools/graphs_only.py BUNDLE --size sd3-medium --precision fp16 --tile 512x512 --steps 1 2 3 6
    python benchmarks/full_size_memory.py BUNDLE [--steps 1] [--residency mapped streamed]

Method. The graphs are the real ones; the weights' files are holes of the right length, whose pages read as zeros and
are resident like any other once they were read: memory is what it is with weights, and the picture is not. One photo of
one tile, phase-split, keys and values in memory, one thread; the peak resident set of a fresh process, from the system.
The bar of the mapped row is 6 GiB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import photograph, run_worker, write_record

from livemoments.bundle import Bundle
from livemoments.profiles.planner.plan import PlanRequest, make_plans
from livemoments.profiles.read import load_profile
from livemoments.runtime.image_files.photo import Photo
from livemoments.types import Size

BAR_BYTES = 6 << 30


def with_holes(source: Path, folder: Path) -> Path:
    """A copy whose weights are files of zeros that take no disk."""
    shutil.copytree(source, folder)
    for name, entry in Bundle.open(folder, verify_hashes=False, weights=False).manifest.files.items():
        if not (folder / name).exists():
            with (folder / name).open("wb") as stream:
                stream.truncate(entry.bytes)
    return folder


def work(bundle: Path, residency: str, steps: int) -> None:
    from livemoments.heap import give_back_large_blocks, peak_resident_bytes
    from livemoments.runtime import restore

    give_back_large_blocks()
    opened = Bundle.open(bundle, verify_hashes=False)
    size = opened.tile_sizes[0]
    photo = Photo(photograph(size.height, size.width))
    frame = Photo(np.ascontiguousarray(photo.pixels[::2, ::2]))
    options: dict[str, Any] = {"reference": "phase-split", "steps": steps, "residency": residency, "threads": 1}
    found = restore(opened, frame, photo, frame, **options)
    assert "memory_fallbacks" not in found.metadata
    print(json.dumps({"peak_bytes": peak_resident_bytes()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--residency", nargs="+", choices=["phases", "mapped", "streamed"], default=["mapped"])
    parser.add_argument("--worker", nargs=2, metavar=("RESIDENCY", "STEPS"))
    options = parser.parse_args()
    if options.worker is not None:
        work(options.bundle, options.worker[0], int(options.worker[1]))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
        bundle = with_holes(options.bundle, Path(name) / "bundle")
        opened = Bundle.open(bundle, verify_hashes=False)
        size = opened.tile_sizes[0]
        request = PlanRequest(size, frame=Size(size.height // 2, size.width // 2), steps=options.steps)
        plans = make_plans(opened, load_profile("cpu-avx2"), request)
        for residency in options.residency:
            result, cost = run_worker(__file__, residency, str(options.steps), str(bundle))
            (plan,) = [
                plan
                for plan in plans.plans
                if (plan.residency, plan.batch, plan.kv_store, plan.flow) == (residency, 1, "host", "engine")
            ]
            measured = result["peak_bytes"]
            row = {
                "residency": residency,
                "photo": str(size),
                "steps": options.steps,
                "predicted_mb": round(plan.peak_bytes / 1e6),
                "measured_mb": round(measured / 1e6),
                "ratio": round(plan.peak_bytes / measured, 3),
                "seconds": round(cost.wall_s, 1),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_record("full-size-memory", {"bar_bytes": BAR_BYTES, "rows": rows})
    sys.exit(int(any(row["residency"] == "mapped" and row["measured_mb"] * 1e6 > BAR_BYTES for row in rows)))


if __name__ == "__main__":
    main()
