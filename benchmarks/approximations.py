"""What references on a grid and a VAE in windows cost in quality, and how many references moments then share.

    python benchmarks/approximations.py [--wide BUNDLE] [--images N] [--steps N] [--jobs N]

Method. The embedded photographs (256 x 256 pixels, the preset live-photo) are restored by the trained small network in
fp32, DIS, per-step, six steps unless --steps says otherwise; quoted is the mean PSNR on y (BT.601 studio) against the
ground truth, and the mean against the exact row's pictures.

  grid N      'restore --pcr-grid N' with the bundle that ships (64-pixel tiles). Shared: of all tiles, those whose
              reference corner stays when the frame moves by one, two and three pixels of the video
  windows N   'restore --vae-tile NxN' with --wide: the same checkpoint exported with
              '--tile 128x128 --overlap 32 --vae-tile 64x64 --vae-tile 96x96 --steps 6'
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import write_record

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.runtime import restore
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.engine_pool import EnginePool
from livemoments.runtime.flow import flow_estimator
from livemoments.runtime.image_files.photo import read_photo
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.tiles.batch import photo_flow, reference_corners
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.quality.fidelity import psnr_y

SEED = 11
GRIDS_PX = (1, 4, 8, 16, 32)
WINDOWS_PX = (None, 96, 64)
MOVED_PX = (1, 2, 3)


def restore_all(bundle: Path, dataset: Path, settings: dict[str, Any]) -> list[np.ndarray]:
    """Every picture of the set, in the order of the names."""
    opened = Bundle.open(bundle, verify_hashes=False)
    return [
        restore(
            opened,
            dataset / FRAMES / path.name,
            path,
            dataset / PHOTO_FRAMES / path.name,
            flow="dis",
            reference="per-step",
            threads=1,
            **settings,
        ).image
        for path in sorted((dataset / PHOTOS).iterdir())
    ]


def shared(dataset: Path, grid_px: int) -> float:
    """The share of tiles whose reference corner stays when the frame moves a little."""
    bundle = Bundle.open(trained_bundle(), verify_hashes=False)
    same, total = 0, 0
    for path in sorted((dataset / PHOTOS).iterdir()):
        frame = read_photo(dataset / FRAMES / path.name)
        found = []
        for shift in (0, *MOVED_PX):
            moved = replace(frame, pixels=np.roll(frame.pixels, shift, axis=1))
            inputs = load_inputs(moved, path, dataset / PHOTO_FRAMES / path.name)
            plan = plan_balanced(inputs.size, bundle.tile_sizes, bundle.manifest.overlap)
            with EnginePool(bundle, OrtBackend("cpu", 1), plan.tile) as pool:
                flow = photo_flow(flow_estimator("dis", pool), inputs)
            found.append([corner[:2] for _, corner in reference_corners(flow, inputs, plan, grid_px=grid_px).values()])
        for other in found[1:]:
            same += sum(a == b for a, b in zip(found[0], other, strict=True))
            total += len(other)
    return same / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wide", type=Path, help="without it the windows are left out")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name, ProcessPoolExecutor(options.jobs) as pool:
        dataset = Path(name) / "set"
        write_embedded_set(dataset, size=Size(256, 256), count=options.images, seed=SEED)
        truths = [read_photo(path).pixels for path in sorted((dataset / TRUTHS).iterdir())]
        ways: dict[str, tuple[Path, dict[str, Any]]] = {
            f"grid {grid}": (trained_bundle(), {"pcr_grid": grid}) for grid in GRIDS_PX
        }
        if options.wide is not None:
            for side in WINDOWS_PX:
                settings = {} if side is None else {"vae_tile": Size(side, side)}
                ways[f"windows {side or 128}"] = (options.wide, settings)
        waiting = {
            way: pool.submit(restore_all, bundle, dataset, given | {"steps": options.steps})
            for way, (bundle, given) in ways.items()
        }
        exact = {"grid": f"grid {GRIDS_PX[0]}", "windows": "windows 128"}
        for way, future in waiting.items():
            pictures, usual = future.result(), waiting[exact[way.split()[0]]].result()
            row: dict[str, Any] = {"way": way, "psnr_y_db": _mean(pictures, truths)}
            if pictures is not usual:
                row["psnr_y_db_to_exact"] = _mean(pictures, usual)
            if way.startswith("grid"):
                row["shared"] = round(shared(dataset, int(way.split()[1])), 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_record("approximations", {"images": options.images, "steps": options.steps, "seed": SEED, "rows": rows})


def _mean(pictures: list[np.ndarray], others: list[np.ndarray]) -> float:
    return round(float(np.mean([psnr_y(a, b) for a, b in zip(pictures, others, strict=True)])), 3)


if __name__ == "__main__":
    main()
