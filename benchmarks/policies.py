"""Time per tile and peak memory: upstream's way in PyTorch against the exported engines under each policy.

    python benchmarks/policies.py [--rounds 3] [--precision fp32]

Method. One `mid` checkpoint with random weights (8 blocks, 8 heads x 64), one photograph of three 512-pixel tiles.
Every variant runs in a fresh process with the same number of threads; the variants take turns, round after round, so
that a slow minute of the machine falls on all of them. A tile's time covers everything done for it: flow, VAE, motion
encoder, six sampling steps with both networks, decoding. The first tile of a process warms up and is not counted
(phase-split loads both networks for every group of tiles, so there all tiles count, loading included). On a shared host
a round can be slowed severalfold by neighbours, so quoted are the least time over the rounds, the ratio of least times,
and the peak resident set of the whole process; medians and greatest times are in the record.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import run_worker, summary, write_live_photo, write_record

TILE_PX = 512
OVERLAP_PX = 64
TILES = 3
POLICIES = ("per-step", "phase-split", "every-2", "every-3", "frozen")
UPSTREAM = "upstream (PyTorch eager fp32)"


def time_reference(work: Path) -> list[float]:
    import torch

    from livemoments.reference.checkpoint import load_reference
    from livemoments.reference.pipeline import PipelineSettings, TileImages, TileNoise, restore_tile
    from livemoments.runtime.image_files.photo import read_photo
    from livemoments.types import Size, Tile

    reference = load_reference(work / "checkpoint")
    photo = torch.from_numpy(read_photo(work / "photo.png").unit().copy()).permute(2, 0, 1)[None] * 2 - 1
    generator = torch.Generator().manual_seed(0)

    def noise(_: Tile, shape: tuple[int, ...]) -> TileNoise:
        return TileNoise(*(torch.randn(shape, generator=generator) for _ in range(3)))

    seconds = []
    with torch.inference_mode():
        for index in range(TILES):
            x = index * (TILE_PX - OVERLAP_PX)
            cut = photo[..., :TILE_PX, x : x + TILE_PX]
            images = TileImages(lr=cut, ref=cut, ref_lr=cut.roll(5, -1))
            started = time.perf_counter()
            restore_tile(
                reference, images, Tile(index, 0, x, TILE_PX, TILE_PX), noise, PipelineSettings(Size(TILE_PX, TILE_PX))
            )
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


def time_engine(work: Path, policy: str) -> list[float]:
    from livemoments.runtime.restore import restore

    files = [work / f"{kind}.png" for kind in ("frame", "photo", "photo_frame")]
    result = restore(work / "bundle", *files, reference=policy)
    seconds = result.timings.tile_seconds
    if len(seconds) != TILES:
        raise SystemExit(f"expected {TILES} tiles, restored {len(seconds)}")
    return seconds if policy == "phase-split" else seconds[1:]


def prepare(work: Path, precision: str) -> None:
    from livemoments.export.pipeline import export_bundle
    from livemoments.reference.random_checkpoint import make_checkpoint
    from livemoments.types import Size

    make_checkpoint(work / "checkpoint", size="mid", seed=0)
    export_bundle(
        work / "checkpoint",
        work / "bundle",
        precision=precision,
        tiles=(Size(TILE_PX, TILE_PX),),
        overlap=OVERLAP_PX,
        steps=(6,),
        verify="none",  # parity is measured elsewhere; here it would only take time
    )
    write_live_photo(work, TILE_PX, TILE_PX + (TILES - 1) * (TILE_PX - OVERLAP_PX))


def measure(work: Path, rounds: int) -> dict[str, Any]:
    variants = (UPSTREAM, *POLICIES)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    memory: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in variants:
            found, cost = run_worker(__file__, str(work), name)
            seconds[name].append(statistics.median(found["tile_s"]))
            memory[name].append(cost.peak_rss_bytes)
            print(f"round {number + 1}/{rounds}  {name:<32} {seconds[name][-1]:7.2f} s a tile", flush=True)
    return {
        name: {
            "tile_s": summary(seconds[name]),
            "times_as_fast_as_upstream": round(min(seconds[UPSTREAM]) / min(seconds[name]), 2),
            "peak_rss_gb": round(max(memory[name]) / 1e9, 2),
        }
        for name in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "fp16"))
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "VARIANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work, name = Path(options.worker[0]), options.worker[1]
        print(json.dumps({"tile_s": time_reference(work) if name == UPSTREAM else time_engine(work, name)}))
        return
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as folder:
        prepare(Path(folder), options.precision)
        table = measure(Path(folder), options.rounds)
    path = write_record(
        f"policies-{options.precision}", {"tile_px": TILE_PX, "rounds": options.rounds, "variants": table}
    )
    print(f"\n{'':<32}  s a tile   times as fast   peak RSS")
    for name, row in table.items():
        speed = row["times_as_fast_as_upstream"]
        print(f"{name:<32}  {row['tile_s']['min']:8.2f}   {speed:13.2f}   {row['peak_rss_gb']:5.2f} GB")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
