"""Engines of TensorRT for RTX, built without a GPU: time, size and memory of every stage, or of one at full size.

    python benchmarks/engines.py [--size tiny|small|mid|sd3-medium] [--stages STAGE,…] [--recipes fp16,int8-tensorrt]
        [--ranges photo|placeholder] [--tile WxH] [--sm SM,…] [--work DIR]

Method. A checkpoint is made (``small`` is the trained one, the others are random) and exported in fp16 with ``--target
tensorrt``; other recipes than fp16 quantize that bundle. Then ``livemoments build`` builds each stage in a process of
its own, which reports its time (parsing and building) and its peak resident set. Compute capabilities that a recipe's
types do not have are left out for it. What the engines do on a GPU is not measured here.

``--ranges photo`` calibrates on one simulated Live Photo. ``placeholder`` gives every linear the same range, -4 to 4,
which nobody measured: a 1024-pixel tile of the full-size networks takes a small machine's CPU more than ten minutes,
and neither time nor memory of building depends on a scale's value. Such engines restore nothing. Full size (``--size
sd3-medium``) needs about 20 GB of disk and 12 GB of memory.
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
import onnx_ir as ir
from common import write_live_photo, write_record

from livemoments.bundle import Bundle
from livemoments.engine_files import parse_sm
from livemoments.graphs.linears import find_linears
from livemoments.quantize.calibrate.result import CalibrationResult, LinearStats, source_digest
from livemoments.types import Size, Stage
from livemoments.validate.cost.fresh_process import ProcessCost, measure_process
from livemoments.version import version_of

TILES = {"tiny": "128x128", "small": None, "mid": "512x512", "sd3-medium": "1024x1024"}
"""``None``: the checkpoint's own."""
_LEAST_PHOTO_PX = 256
"""A clip is simulated from photographs, which smaller ones no longer are."""
KINDS = {"photo": "ref", "frame": "lr", "photo_frame": "ref_lr"}
LEAST_SM = {"fp8": "8.9"}
PLACEHOLDER = 4.0
"""The end of every placeholder range: where normalised activations mostly lie."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(TILES), default="tiny")
    parser.add_argument("--stages", help="default: all that the checkpoint has")
    parser.add_argument("--recipes", default="fp16")
    parser.add_argument("--ranges", choices=["photo", "placeholder"], default="photo")
    parser.add_argument("--tile", help="default: by the checkpoint's size")
    parser.add_argument("--sm", default="8.6,8.9,12.0")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint and the bundles (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="livemoments-engines-", dir=options.work) as name:
        record = measure(Path(name), options)
    suffix = "-placeholder" if options.ranges == "placeholder" else ""
    print(write_record(f"engines-{options.size}{suffix}", record))


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
    shutil.rmtree(checkpoint)  # at full size disks are small
    manifest = Bundle.open(source, verify_hashes=False).manifest
    served = {recipe: _served(options.sm, recipe) for recipe in options.recipes.split(",")}
    calibration: Path | None = None
    rows: dict[str, list[dict[str, Any]]] = {}
    quantized: dict[str, dict[str, float]] = {}
    for recipe, sm in served.items():
        bundle = work / recipe
        if recipe != "fp16":
            calibration = calibration or calibrate(work, source, options.ranges)
            cost = run(
                *("quantize", source, "-o", bundle, "--recipe", recipe, "--calibration", calibration),
                *("--verify", "none"),
            )
            quantized[recipe] = _cost(cost)
        rows[recipe] = [row for stage in manifest.stages if (row := build(bundle, stage, sm))]
        if bundle != source:
            shutil.rmtree(bundle)
    return {
        "library": f"TensorRT for RTX {version_of('tensorrt-rtx')}",
        "checkpoint": options.size,
        "tile": manifest.tiles[0],
        "batch": 1,
        "sm": {recipe: sm.split(",") for recipe, sm in served.items()},
        "export": _cost(exported),
        **({"quantize": quantized, "ranges": options.ranges} if quantized else {}),
        "engines": rows,
    }


def _cost(cost: ProcessCost) -> dict[str, float]:
    return {"wall_s": round(cost.wall_s, 1), "peak_rss_gb": round(cost.peak_rss_bytes / 1e9, 2)}


def _served(sm: str, recipe: str) -> str:
    """The compute capabilities that have a recipe's types."""
    least = parse_sm(LEAST_SM.get(recipe, "0.0"))
    return ",".join(one for one in sm.split(",") if parse_sm(one) >= least)


def calibrate(work: Path, source: Path, ranges: str) -> Path:
    """What ``quantize --calibration`` takes."""
    if ranges == "photo":
        return write_photos(work / "photos", Bundle.open(source, verify_hashes=False).tile_sizes[0])
    return write_placeholders(source, work / "placeholder.calibration")


def write_placeholders(source: Path, path: Path) -> Path:
    """A calibration without a photo: every linear of the transformers has the same range at every timestep."""
    bundle = Bundle.open(source, verify_hashes=False)
    points = bundle.manifest.schedule.points
    linears = [
        linear
        for stage in (Stage.REFERENCE, Stage.RESTORATION)
        if stage in bundle.manifest.stages
        for linear in find_linears(ir.load(source / bundle.graph(stage, bundle.tile_sizes[0]).path), str(stage))
    ]
    end = np.full(len(points), PLACEHOLDER)

    def stats(channels: int) -> LinearStats:
        each = np.full((len(points), channels), PLACEHOLDER, np.float32)
        return LinearStats(-end, end, each[0], np.ones(channels), -each, each, np.ones(len(points), np.int64))

    of_width = {width: stats(width) for width in {linear.in_features for linear in linears}}
    found = {linear.id: of_width[linear.in_features] for linear in linears}
    result = CalibrationResult(found, 0, 0, "0" * 64, 0, "placeholder", points, source_digest(bundle))
    result.save(path)
    return path


def write_photos(folder: Path, tile: Size) -> Path:
    """A simulated Live Photo of a tile or a few, in the folders of a calibration set."""
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
