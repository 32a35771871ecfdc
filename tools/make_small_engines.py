"""Make the bundle and the recording that come with the trained small checkpoint (checkpoints/small_engines/).

    python tools/make_small_engines.py

To be run when the exporter's graphs or the recording's format change; tests/export/test_small_engines.py tells.
Weights that stay the same stay the same files.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from livemoments.checkpoints import trained_checkpoint
from livemoments.demo import OVERLAP_PX, TILE
from livemoments.demo_images import load_images
from livemoments.export.pipeline import export_bundle
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.photo import write_image
from livemoments.store.folders import StagedFolder, stage_folder
from livemoments.types import Size
from livemoments.validate.recording.pipeline import record

TARGET = Path(__file__).resolve().parent.parent / "checkpoints" / "small_engines"
STEPS = (6, 1)
"""Plans of steps: upstream's, and the fewest, whose cost in quality the tests measure."""
TWO_TILES = Size(TILE.height, 2 * TILE.width - OVERLAP_PX)
"""A frame may not be smaller than a tile, so the clip has the photo's size here: its frames are upscaled beforehand."""


def main() -> None:
    """Make both, replacing the older ones whole."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    with stage_folder(TARGET) as folder:
        _make(folder)
        StagedFolder(TARGET, folder, overwrite=True).publish()
    print(f"wrote {TARGET}")


def _make(folder: Path) -> None:
    checkpoint = trained_checkpoint("small")
    export_bundle(checkpoint, folder / "bundle", tiles=(TILE,), overlap=OVERLAP_PX, steps=STEPS)
    images = load_images(None, None)
    height, width = images["photo"].shape[:2]
    top, left = (height - TWO_TILES.height) // 2, (width - TWO_TILES.width) // 2
    with tempfile.TemporaryDirectory() as name:
        paths = {}
        for kind in ("frame", "photo", "photo_frame"):
            whole = images[kind]
            if whole.shape[:2] != (height, width):
                whole = cv2.resize(whole, (width, height), interpolation=cv2.INTER_CUBIC)
            paths[kind] = Path(name) / f"{kind}.png"
            part = whole[top : top + TWO_TILES.height, left : left + TWO_TILES.width]
            write_image(paths[kind], np.ascontiguousarray(part))
        record(
            checkpoint,
            LivePhoto(**paths, name="coffee"),
            folder / "recording",
            tile=TILE,
            overlap=OVERLAP_PX,
            detail="blocks",
            detail_steps=(0,),
        )


if __name__ == "__main__":
    main()
