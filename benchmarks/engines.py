"""Engines of TensorRT for RTX, built without a GPU: time, size and memory of every stage, or of one at full size.

    python benchmarks/engines.py [--size tiny|small|mid|sd3-medium] [--stages STAGE,…] [--recipes fp16,int8-tensorrt]
        [--tile WxH] [--sm SM,…] [--work DIR]

Method. A checkpoint is made (``small`` is the trained one, the others are random) and exported in fp16 with ``--target
tensorrt``; other recipes than fp16 quantize that bundle, calibrated on one simulated Live Photo. Then ``livemoments
build`` builds each stage in a process of its own, which reports its time (parsing and building) and its peak resident
set. What the engines do on a GPU is not measured here. Full size (``--size sd3-medium --stages restoration``) needs
about 15 GB of disk and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write_live_photo, write_record

from livemoments.bundle import Bundle
from livemoments.types import Size
from livemoments.validate.cost.fresh_process import ProcessCost, measure_process
from livemoments.version import version_of

TILES = {"tiny": "128x128", "small": None, "mid": "512x512", "sd3-medium": "1024x1024"}
"""``None``: the checkpoint's own."""
_LEAST_PHOTO_PX = 256
"""A clip is simulated from photographs, which smaller ones no longer are."""
KINDS = {"photo": "ref", "frame": "lr", "photo_frame": "ref_lr"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TILES), default="tiny")
    parser.add_argument("--stages", help="default: all that the checkpoint has")
    parser.add_argument("--recipes", default="fp16")
    parser.add_argument("--tile", help="default: by the checkpoint's size")
    parser.add_argument("--sm", default="8.6,8.9,12.0")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the bundles (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="livemoments-engines-", dir=options.work) as name:
        record = measure(Path(name), options)
    print(write_record(f"engines-{options.size}", record))


def measure(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make, export, quantize and build; the record."""
    checkpoint, source = work / "checkpoint", work / "fp16"
    kind = () if options.size == "small" else ("--dtype", "float16")
    run("make-checkpoint", checkpoint, "--size", options.size, *kind)
    tile = options.tile or TILES[options.size]
    chosen = ("--tile", tile) if tile else ()
    stages = ("--stages", options.stages) if options.stages else ()
    exported = run(
        *("export", checkpoint, "-o", source, "--target", "tensorrt", "--precision", "fp16", "--verify", "none"),
        *(*chosen, *stages),
    )
    manifest = Bundle.open(source, verify_hashes=False).manifest
    rows: dict[str, list[dict[str, Any]]] = {}
    for recipe in options.recipes.split(","):
        bundle = work / recipe
        if recipe != "fp16":
            calibration = write_calibration(work / "photos", Size.parse(manifest.tiles[0]))
            run("quantize", source, "-o", bundle, "--recipe", recipe, "--calibration", calibration, "--verify", "none")
        rows[recipe] = [row for stage in manifest.stages if (row := build(bundle, stage, options.sm))]
    return {
        "library": f"TensorRT for RTX {version_of('tensorrt-rtx')}",
        "checkpoint": options.size,
        "tile": manifest.tiles[0],
        "batch": 1,
        "sm": options.sm.split(","),
        "export": {"wall_s": round(exported.wall_s, 1), "peak_rss_gb": round(exported.peak_rss_bytes / 1e9, 2)},
        "engines": rows,
    }


def write_calibration(folder: Path, tile: Size) -> Path:
    """A simulated Live Photo of a tile or a few, as ``quantize --calibration`` takes it."""
    height, width = (max(_LEAST_PHOTO_PX, side) for side in (tile.height, tile.width))
    for kind, path in write_live_photo(folder / "written", height, width).items():
        (folder / KINDS[kind]).mkdir(exist_ok=True)
        path.rename(folder / KINDS[kind] / "photo.png")
    (folder / "written").rmdir()
    return folder


def build(bundle: Path, stage: str, sm: str) -> dict[str, Any] | None:
    """Build one stage; what it cost. ``None``: its engine came along with the source's, which quantizing left alone."""
    built = run("build", bundle, "--engine", "rtx", "--sm", sm, "--stages", stage, "--json")
    (engine,) = json.loads(built.stdout)["engines"]
    if not engine["built"]:
        return None
    row = {
        "stage": stage,
        "layers": engine["layers"],
        "seconds": round(engine["seconds"], 1),
        "engine_mb": round(engine["bytes"] / 1e6, 1),
        "peak_rss_gb": round(engine["peak_rss_bytes"] / 1e9, 2),
    }
    print(bundle.name, json.dumps(row), flush=True)
    return row


def run(*arguments: str | Path) -> ProcessCost:
    """A command of ``livemoments`` in a fresh process."""
    cost = measure_process([sys.executable, "-m", "livemoments", *map(str, arguments)])
    if cost.returncode:
        raise SystemExit(f"livemoments {arguments[0]} failed:\n{cost.stderr}")
    return cost


if __name__ == "__main__":
    main()
