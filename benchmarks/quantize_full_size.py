"""Quantizing at full size on a small machine: an sd3-medium bundle in fp16, calibrated, quantized by several recipes.

    python benchmarks/quantize_full_size.py [--work DIR] [--tile 256x256] [--recipes int8 int4-weights]

Method. Every step is a command of its own, run as a fresh process; wall time and peak resident set come from the
operating system. All six stages are exported (random weights: time and memory do not depend on them). Calibration
restores one simulated Live Photo of one tile through the whole pipeline, six steps. Small tiles keep the restoration's
time bearable on two cores; the weights, which decide the peak, are those of any tile size. Then every bundle restores
that photo in a process of its own: seconds of one run of each network, peak memory, PSNR from the fp16 bundle's photo.
Needs about 40 GB of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import write_live_photo, write_record

from livemoments.quantize.recipes import load_recipe
from livemoments.types import Size
from livemoments.validate.cost.fresh_process import measure_process

TRANSFORMERS = ("reference", "restoration")


def make_photos(folder: Path, tile: Size) -> Path:
    """A calibration set of one photo of one tile."""
    paths = write_live_photo(folder / "made", tile.height, tile.width)
    for kind, part in (("frame", "lr"), ("photo", "ref"), ("photo_frame", "ref_lr")):
        (folder / "photos" / part).mkdir(parents=True, exist_ok=True)
        paths[kind].rename(folder / "photos" / part / "coffee.png")
    return folder / "photos"


def written_bytes(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def restore(work: Path, name: str) -> dict[str, Any]:
    """Restore the calibration photo with a bundle, the two networks taking turns; what it cost."""
    images = [
        part
        for option, folder in (("--frame", "lr"), ("--photo", "ref"), ("--photo-frame", "ref_lr"))
        for part in (option, str(work / "photos" / folder / "coffee.png"))
    ]
    output = ["-o", str(work / f"{name}.png"), "--reference", "phase-split", "--json", "--quiet"]
    cost = measure_process([sys.executable, "-m", "livemoments", "restore", str(work / name), *images, *output])
    if cost.returncode:
        raise SystemExit(f"restoring with {name} failed:\n{cost.stderr}")
    stages = json.loads(cost.stdout)["timings"]["stages"]
    return {
        "wall_s": round(cost.wall_s, 1),
        "peak_rss_gb": round(cost.peak_rss_bytes / 1e9, 2),
        **{f"{stage}_s": round(stages[stage]["seconds"] / stages[stage]["count"], 2) for stage in TRANSFORMERS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep checkpoint and bundles here, and take those that are there")
    parser.add_argument("--tile", default="256x256")
    parser.add_argument("--recipes", nargs="+", default=["int8", "int8-dynamic", "int4-weights"])
    parser.add_argument("--verify", choices=["sampled", "none"], default="none")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="livemoments-full-")))
        work.mkdir(parents=True, exist_ok=True)
        photos = make_photos(work, Size.parse(options.tile))
        steps = {
            "checkpoint": ["make-checkpoint", str(work / "checkpoint"), "--size", "sd3-medium", "--dtype", "float16"],
            "fp16": [
                *("export", str(work / "checkpoint"), "-o", str(work / "fp16"), "--precision", "fp16"),
                *("--tile", options.tile, "--overlap", "32", "--steps", "6", "--verify", "none"),
            ],
        }
        for recipe in options.recipes:
            steps[recipe] = [
                *("quantize", str(work / "fp16"), "-o", str(work / recipe), "--recipe", recipe),
                *(("--calibration", str(photos)) if load_recipe(recipe).needs_calibration else ()),
                *("--verify", options.verify, "--allow-slower"),
            ]
        kept = work / "rows.json"
        rows = json.loads(kept.read_text()) if kept.exists() else {}
        for title, arguments in steps.items():
            if title in rows:
                continue
            cost = measure_process([sys.executable, "-m", "livemoments", *arguments])
            if cost.returncode:
                raise SystemExit(f"{title} failed:\n{cost.stderr}")
            rows[title] = {
                "command": "livemoments " + " ".join(a.replace(str(work), "WORK") for a in arguments),
                "wall_s": round(cost.wall_s, 1),
                "peak_rss_gb": round(cost.peak_rss_bytes / 1e9, 2),
                "written_gb": round(written_bytes(work / title) / 1e9, 2),
            }
            kept.write_text(json.dumps(rows))
            print(title, json.dumps(rows[title]), flush=True)
        restored = {name: restore(work, name) for name in ("fp16", *options.recipes)}
        exact = cv2.imread(str(work / "fp16.png")).astype(np.float64)
        for name, row in restored.items():
            error = float(np.mean((cv2.imread(str(work / f"{name}.png")) - exact) ** 2))
            row["psnr_from_fp16_db"] = None if error == 0 else round(10 * math.log10(255**2 / error), 2)
            print(f"restore, {name}", json.dumps(row), flush=True)
    print(write_record("quantize-full-size", {"steps": rows, "restore": restored}))


if __name__ == "__main__":
    main()
