"""Predicted against measured peak memory of a restoration: what 'livemoments plan' is held to.

    python benchmarks/plan_memory.py [--networks tiny small mid] [--residency phases mapped … --add]

Method. For each network one photo; for each way of restoring it the planner's predicted peak, and the peak resident set
of a fresh 'livemoments restore' with one thread that was given exactly the plan's arguments (getrusage, read from the
system). The bar is 10 % of the measured peak. `tiny` and `mid` are random checkpoints (RAFT included), `small` is the
trained one that ships. --add keeps the record's rows of other ways and networks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, write_live_photo, write_record

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.profiles.planner.plan import Plan, PlanRequest, make_plans
from livemoments.profiles.read import load_profile
from livemoments.runtime.options import RESIDENCIES
from livemoments.types import Size
from livemoments.validate.cost.fresh_process import measure_process

BAR = 0.1
TILES = {"tiny": (Size(256, 256),), "small": (), "mid": (Size(512, 512),)}
PHOTOS = {"tiny": Size(512, 512), "small": Size(256, 304), "mid": Size(512, 960)}
WAYS = (
    ("per-step", "all", 1),
    ("per-step", "phases", 1),
    ("phase-split", "all", 1),
    ("per-step", "all", 2),
    ("per-step", "mapped", 1),
    ("per-step", "streamed", 1),
)


def make_bundle(work: Path, network: str) -> Path:
    if network == "small":
        return trained_bundle()
    from livemoments.export.pipeline import export_bundle
    from livemoments.reference.random_checkpoint import make_checkpoint

    make_checkpoint(work / f"{network}-checkpoint", size=network)
    export_bundle(
        work / f"{network}-checkpoint", work / network, tiles=TILES[network], overlap=32, steps=(3, 6), verify="none"
    )
    return work / network


def measure(bundle: Path, images: Path, plan: Plan) -> int:
    command = [sys.executable, "-m", "livemoments", "restore", str(bundle), "-o", str(images / "out.png"), "-q"]
    for option in ("frame", "photo", "photo_frame"):
        command += [f"--{option.replace('_', '-')}", str(images / f"{option}.png")]
    cost = measure_process([*command, "--threads", "1", *plan.arguments])
    if cost.returncode:
        raise SystemExit(cost.stderr)
    return cost.peak_rss_bytes


def compare(work: Path, network: str, bundle: Path, residencies: Sequence[str]) -> list[dict[str, Any]]:
    size, images = PHOTOS[network], work / f"{network}-images"
    write_live_photo(images, size.height, size.width)
    from livemoments.runtime.image_files.photo import read_photo

    frame = read_photo(images / "frame.png").size
    plans = make_plans(Bundle.open(bundle), load_profile("cpu-avx2"), PlanRequest(size, frame=frame))
    usual = plans.plans[0].flow if network == "small" else "engine"
    rows = []
    for plan in plans.plans:
        way = (plan.reference, plan.residency, plan.batch)
        if way not in WAYS or plan.kv_store != "host" or plan.flow != usual or plan.vae_tile is not None:
            continue
        if plan.residency not in residencies:
            continue
        if TILES[network] and Size.parse(plan.tile) not in TILES[network]:
            continue
        measured = measure(bundle, images, plan)
        ratio = plan.peak_bytes / measured
        rows.append(
            {
                "network": network,
                "photo": str(size),
                "arguments": " ".join(plan.arguments),
                "predicted_mb": round(plan.peak_bytes / 1e6, 1),
                "measured_mb": round(measured / 1e6, 1),
                "ratio": round(ratio, 3),
                "peak_in": max(plan.segments, key=lambda segment: segment.host_bytes).label,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(TILES), default=list(TILES))
    parser.add_argument("--residency", nargs="+", choices=list(RESIDENCIES), default=list(RESIDENCIES))
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--bundle", nargs=2, action="append", metavar=("NETWORK", "BUNDLE"), default=[])
    options = parser.parse_args()
    given = {name: Path(path) for name, path in options.bundle}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
        for network in options.networks:
            bundle = given.get(network) or make_bundle(Path(name), network)
            rows += compare(Path(name), network, bundle, options.residency)
    if options.add:
        known = {(row["network"], row["arguments"]) for row in rows}
        kept = json.loads((RESULTS / "plan-memory.json").read_text())["rows"]
        rows = [row for row in kept if (row["network"], row["arguments"]) not in known] + rows
    worst = max(rows, key=lambda row: abs(row["ratio"] - 1))
    write_record("plan-memory", {"bar": BAR, "worst_ratio": worst["ratio"], "rows": rows})
    print(f"worst: {worst['ratio']} ({worst['network']}, {worst['arguments']})")
    sys.exit(int(abs(worst["ratio"] - 1) > BAR))


if __name__ == "__main__":
    main()
