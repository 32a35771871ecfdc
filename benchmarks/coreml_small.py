"""Every Core ML recipe on the trained `small` checkpoint: size, distance of the stages, and quality of photos.

    python benchmarks/coreml_small.py [--source BUNDLE] [--recipes NAME,…] [--size 128] [--photos 4]

Method. The half-precision bundle of packages (64-pixel tiles; --source, or exported here) is quantized with every
recipe for packages, as `livemoments quantize` does it; int8-coreml is calibrated with the fp32 engines on other motions
of the embedded photographs. Photos of the embedded set are restored with each bundle through the interpreter, with the
default steps and the same noise: PSNR on y against the truth, and the lowest PSNR of a photo against the fp32 engines'
(onnxruntime). The stages' distances from the half-precision packages are those that quantizing measures. Nothing here
says how fast a device is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import write_record

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle, trained_checkpoint
from livemoments.distances import psnr_db
from livemoments.export.pipeline import export_bundle
from livemoments.quantize.calibrate.run import calibrate_for
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.quantize.recipes import load_recipe, names_for
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.restore import restore
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size, Stage
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.quality.fidelity import psnr_y

TILE = Size(64, 64)
OVERLAP_PX = 16
SEED, CALIBRATION_SEED = 11, 77
STAGES = (Stage.REFERENCE, Stage.RESTORATION)


def restored(bundle: Path, data: Path) -> dict[str, np.ndarray]:
    """Every photo of a set, restored: (H, W, 3) uint8."""
    names = sorted(path.name for path in (data / PHOTOS).iterdir())
    return {
        name: restore(bundle, data / FRAMES / name, data / PHOTOS / name, data / PHOTO_FRAMES / name, seed=0).image
        for name in names
    }


def row(bundle: Path, data: Path, wanted: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is recorded of a bundle."""
    opened = Bundle.open(bundle)
    images = restored(bundle, data)
    truths = {name: read_photo(data / TRUTHS / name).pixels for name in images}
    files = opened.manifest.files
    graphs = [graph for stage in STAGES for graph in opened.stage(stage).graphs]
    names = {name for graph in graphs for name in (graph.path, *graph.weights)}
    distances = {
        str(stage): max((parity.rel_l2 for parity in opened.stage(stage).parity), default=None) for stage in STAGES
    }
    return {
        "networks_mb": round(sum(files[name].bytes for name in names) / 1e6, 2),
        "rel_l2": distances,
        "psnr_y_db": round(float(np.mean([psnr_y(images[name], truths[name]) for name in images])), 3),
        "least_psnr_of_fp32_db": round(
            min(psnr_db(images[name].astype(float), wanted[name].astype(float), 255) for name in images), 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="BUNDLE", help="half-precision packages of `small`")
    parser.add_argument("--recipes", default=",".join(names_for("coreml")), metavar="NAME,…", help="which (all)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="of the photos")
    parser.add_argument("--photos", type=int, default=4, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
        work = Path(name)
        source = options.source
        if source is None:
            source = work / "source"
            export_bundle(
                trained_checkpoint(), source, target="coreml", precision="fp16", tiles=(TILE,), overlap=OVERLAP_PX
            )
        size = Size(options.size, options.size)
        data = write_embedded_set(work / "set", size=size, count=options.photos, seed=SEED)
        calibration = write_embedded_set(work / "calibration", size=size, count=4, seed=CALIBRATION_SEED)
        wanted = restored(trained_bundle(), data)
        rows = {"fp32, onnxruntime": row(trained_bundle(), data, wanted)}
        print(rows, flush=True)
        rows["fp16"] = row(source, data, wanted)
        print(rows["fp16"], flush=True)
        for recipe in options.recipes.split(","):
            found = load_recipe(recipe)
            ranges = None
            if found.needs_calibration:
                ranges = calibrate_for(found, Bundle.open(trained_bundle()), calibration)
            quantize_bundle(source, work / recipe, recipe=found, calibration=ranges)
            rows[recipe] = row(work / recipe, data, wanted)
            record = {"images": options.photos, "size": str(size), "rows": rows}
            print(recipe, rows[recipe], f"written to {write_record('coreml-small', record)}", flush=True)


if __name__ == "__main__":
    main()
