"""What restoring a 3072 x 4096 photo adds to the engines' own memory.

    python benchmarks/restore_memory.py

Method. A `tiny` checkpoint with 1024-pixel tiles (its engines are small but not free: VAE activations at 1024 pixels),
flow by DIS so that no all-pairs volume hides the rest. Two fresh processes: one restores a photo of a single tile, the
other the 12-megapixel photo; both load the same engines and run them on the same tile size. The difference of their
peak resident sets is what the size of the photo costs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from common import run_worker, write_live_photo, write_record

TILE_PX = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        from livemoments.runtime.restore import restore

        folder, images = Path(options.worker[0]), Path(options.worker[1])
        files = [images / f"{kind}.png" for kind in ("frame", "photo", "photo_frame")]
        result = restore(folder / "bundle", *files, images / "out.png", flow="dis", steps=1, reference="frozen")
        print(json.dumps({"tiles": len(result.timings.tile_seconds)}))
        return
    from livemoments.export.pipeline import export_bundle
    from livemoments.reference.checkpoint_sizes import SIZES
    from livemoments.reference.random_checkpoint import make_checkpoint
    from livemoments.types import Size

    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint", size=replace(SIZES["tiny"], pos_embed_max_size=64))
        export_bundle(folder / "checkpoint", folder / "bundle", tiles=(Size(TILE_PX, TILE_PX),), steps=(1,))
        write_live_photo(folder / "one", TILE_PX, TILE_PX)
        write_live_photo(folder / "whole", 3072, 4096)
        found = {kind: run_worker(__file__, name, str(folder / kind)) for kind in ("one", "whole")}
    peaks = {kind: cost.peak_rss_bytes for kind, (_, cost) in found.items()}
    added = peaks["whole"] - peaks["one"]
    record = {
        "tiles": {kind: result["tiles"] for kind, (result, _) in found.items()},
        "peak_rss_gb": {kind: round(peak / 1e9, 3) for kind, peak in peaks.items()},
        "added_gb": round(added / 1e9, 3),
    }
    path = write_record("restore-memory", record)
    print(f"one tile {peaks['one'] / 1e9:.2f} GB, 3072 x 4096 {peaks['whole'] / 1e9:.2f} GB, {added / 1e9:.2f} GB more")
    print(path)


if __name__ == "__main__":
    main()
