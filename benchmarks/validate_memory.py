"""Does the memory of a validation run grow with the number of images?

    python benchmarks/validate_memory.py [--images 260]

Method. A `tiny` checkpoint with 256-pixel tiles, and as many simulated Live Photos of 320 x 256 pixels as asked for,
each with ground truth, each from another crop of one photograph. Three fresh processes run over a tenth, half and all
of them: restoring, PSNR, SSIM and MS-SSIM, seam score, previews, the journal. Compared are their peak resident sets;
within the longest run the resident set after a tenth of the images is compared with that after the last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
from common import photograph, run_worker, write_record

WIDTH, HEIGHT = 320, 256
TILE_PX = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=260, metavar="N", help="of the longest run (default: 260)")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "COUNT", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_run(Path(options.worker[0]), int(options.worker[1]), Path(options.worker[2]))))
        return
    from livemoments.export.pipeline import export_bundle
    from livemoments.reference.random_checkpoint import make_checkpoint
    from livemoments.types import Size

    counts = [options.images // 10, options.images // 2, options.images]
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint", size="tiny")
        export_bundle(
            folder / "checkpoint", folder / "bundle", tiles=(Size(TILE_PX, TILE_PX),), steps=(1,), verify="none"
        )
        write_dataset(folder / "data", options.images)
        runs = [run_worker(__file__, name, str(count), str(folder / f"work{count}")) for count in counts]
    record = {
        "photo": f"{WIDTH}x{HEIGHT}",
        "runs": [
            {
                "images": count,
                "peak_rss_mb": round(cost.peak_rss_bytes / 1e6, 1),
                "rss_after_a_tenth_mb": round(result["early_bytes"] / 1e6, 1),
                "rss_at_the_end_mb": round(result["late_bytes"] / 1e6, 1),
                "s_per_image": round(cost.wall_s / count, 2),
            }
            for count, (result, cost) in zip(counts, runs, strict=True)
        ],
    }
    path = write_record("validate-memory", record)
    for row in record["runs"]:
        print(row)
    print(path)


def write_dataset(folder: Path, count: int) -> None:
    """Simulated Live Photos in upstream's layout."""
    from livemoments.simulated_clip import simulate_live_photo

    source = photograph(2 * HEIGHT, 2 * WIDTH)
    for part in ("lr", "ref", "ref_lr", "gt"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        y, x = index * 7 % (HEIGHT // 2), index * 13 % (WIDTH // 2)
        clip = simulate_live_photo(source[y : y + int(1.2 * HEIGHT), x : x + int(1.2 * WIDTH)], seed=index)
        pictures = {"ref": clip.photo, "gt": clip.truth, "lr": clip.frame, "ref_lr": clip.photo_frame}
        for part, pixels in pictures.items():
            scale = 1 if part in ("ref", "gt") else 2
            exact = cv2.resize(pixels, (WIDTH // scale, HEIGHT // scale), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / part / f"photo{index:03}.png"), exact[..., ::-1])


def _run(folder: Path, count: int, work: Path) -> dict[str, int]:
    """One run in this process, with its resident set after a tenth of the images and at the end."""
    from livemoments.runtime.options import RestoreOptions
    from livemoments.validate.datasets.index import open_dataset
    from livemoments.validate.harness.run import run_images
    from livemoments.validate.report_data import ImageResult

    seen: list[int] = []

    def look(_: ImageResult) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append(pages * 4096)

    dataset = open_dataset(folder / "data")
    dataset = replace(dataset, items=dataset.items[:count])
    settings = RestoreOptions(steps=1, reference="frozen", flow="dis", threads=1)
    results = run_images(folder / "bundle", dataset, work=work, settings=settings, on_result=look)
    assert all(result.status == "ok" for result in results)
    return {"early_bytes": seen[len(seen) // 10], "late_bytes": seen[-1]}


if __name__ == "__main__":
    main()
