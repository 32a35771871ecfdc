"""Random settings under a hard memory limit: what is said to fit fits, and what is not falls back to the same picture.

    python benchmarks/memory_limits.py [--settings 20] [--seed N] [--jobs N]

Method. A setting is a random photo size, and a random one of the plans that 'livemoments plan' compares for it (tiles
at once, policy, residency, where keys and values lie). The trained small network that ships restores the photo in a
fresh process with one thread and the plan's arguments.

  said to fit   the limit is one to 1.4 times what 'plan' says that the plan needs under 'ulimit -d' (data_bytes: the
                predicted peak, a tenth, and what arenas reserve): the process ends well, nothing changed on the way
  does not fit  the limit is below nine tenths of the predicted peak, and at least what the plan that takes the least
                needs: the process ends well after 'memory ran out', and the picture is the unlimited one's

The limit is RLIMIT_DATA, which the kernel enforces by refusing memory. A limit of the address space would count mapped
files; a control group needs rights that CI and many users lack, and kills where it cannot refuse. RLIMIT_DATA counts
private memory that was reserved, touched or not, and no pages of files. Nothing is added to what the planner says.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import photograph, write_record

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.profiles.planner.plan import BATCHES, MARGIN, Costs, Plan, PlanRequest, make_plans
from livemoments.profiles.read import load_profile
from livemoments.types import Size

SIDES_PX = (128, 144, 160, 192, 208)
POLICIES = ("per-step", "phase-split", "frozen")
STEPS = 1
MOST_ROOM = 1.4
"""The largest limit that is tried, in terms of what a plan needs."""
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def write_images(folder: Path, photo: Size) -> None:
    """A photo and two frames of half its size, a pixel apart; what they show does not matter here."""
    pixels = photograph(photo.height, photo.width)
    small = cv2.resize(pixels, (photo.width // 2, photo.height // 2), interpolation=cv2.INTER_AREA)
    for name, image in (("photo", pixels), ("photo_frame", small), ("frame", np.roll(small, 1, axis=1))):
        cv2.imwrite(str(folder / f"{name}.png"), image[..., ::-1])


def restore(images: Path, plan: Plan, limit_bytes: int | None) -> tuple[np.ndarray, list[str]] | str:
    """The picture and the fallbacks, or why there is none."""
    output = images / "out.png"
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "livemoments", "restore", str(trained_bundle()), "-o", str(output), "--json", "-q"]
    for option in ("frame", "photo", "photo_frame"):
        command += [f"--{option.replace('_', '-')}", str(images / f"{option}.png")]
    command += ["--threads", "1", *plan.arguments]
    if limit_bytes is not None:
        command = [sys.executable, "-c", _LIMITED, str(limit_bytes), *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    picture = cv2.imread(str(output))
    assert picture is not None  # it was just written
    return picture, json.loads(done.stdout)["metadata"].get("memory_fallbacks", [])


@functools.cache
def costs() -> Costs:
    """Of the bundle's stages, each counted once for all settings."""
    return Costs(Bundle.open(trained_bundle(), verify_hashes=False))


def plans_of(rng: random.Random) -> tuple[Size, Sequence[Plan]]:
    """A random photo, and the exact plans for it."""
    photo = Size(rng.choice(SIDES_PX), rng.choice(SIDES_PX))
    request = PlanRequest(
        photo, frame=Size(photo.height // 2, photo.width // 2), reference=rng.choice(POLICIES), steps=STEPS
    )
    found = make_plans(costs().bundle, load_profile("cpu-avx2"), request, costs=costs())
    return photo, [plan for plan in found.plans if plan.vae_tile is None]


def try_fitting(work: Path, rng: random.Random) -> dict[str, Any]:
    """A plan that is said to fit."""
    photo, plans = plans_of(rng)
    plan = rng.choice(plans)
    limit = int(plan.data_bytes * rng.uniform(1, MOST_ROOM))
    write_images(work, photo)
    found = restore(work, plan, limit)
    problem = found if isinstance(found, str) else "; ".join(found[1])
    return _row(photo, plan, limit) | {"kept": not problem, "problem": problem}


def try_failing(work: Path, rng: random.Random) -> dict[str, Any]:
    """A plan that is said not to fit, where another one is."""
    plan, least = None, 0
    while plan is None:
        photo, plans = plans_of(rng)
        least = min(plan.data_bytes for plan in plans)
        too_large = [plan for plan in plans if plan.peak_bytes / (1 + MARGIN) > least and plan.residency == "all"]
        plan = rng.choice(too_large) if too_large else None
    limit = int(rng.uniform(least, plan.peak_bytes / (1 + MARGIN)))
    write_images(work, photo)
    expected, found = restore(work, plan, None), restore(work, plan, limit)
    assert not isinstance(expected, str), expected
    if isinstance(found, str):
        return _row(photo, plan, limit) | {"kept": False, "problem": found}
    off = int(np.abs(found[0].astype(int) - expected[0]).max())
    kept = bool(found[1]) and off <= 1
    return _row(photo, plan, limit) | {"kept": kept, "fallbacks": found[1], "levels_off": off}


def _row(photo: Size, plan: Plan, limit: int) -> dict[str, Any]:
    return {
        "photo": str(photo),
        "arguments": " ".join(plan.arguments),
        "predicted_mb": round(plan.peak_bytes / 1e6, 1),
        "needs_mb": round(plan.needs_bytes / 1e6, 1),
        "limit_mb": round(limit / 1e6, 1),
    }


KINDS = {"said to fit": try_fitting, "does not fit": try_failing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--jobs", type=int, default=1, help="processes at once: each has a limit of its own")
    options = parser.parse_args()
    for batch in BATCHES:  # before there are threads: onnx's shape inference is not made for several
        for stage in costs().bundle.manifest.model.stages:
            costs().of(stage, costs().bundle.tile_sizes[0], batch)

    def attempt(kind: str, number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
            row = KINDS[kind](Path(name), random.Random(f"{options.seed} {kind} {number}"))
        print(kind, json.dumps(row), flush=True)
        return row

    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {kind: [pool.submit(attempt, kind, n) for n in range(options.settings)] for kind in KINDS}
    rows = {kind: [future.result() for future in futures] for kind, futures in waiting.items()}
    kept = {kind: sum(row["kept"] for row in of_kind) for kind, of_kind in rows.items()}
    about = {"seed": options.seed, "limit": "RLIMIT_DATA"}
    write_record("memory-limits", {**about, "settings": options.settings, "kept": kept, "rows": rows})
    print(kept)
    sys.exit(int(any(count < options.settings for count in kept.values())))


if __name__ == "__main__":
    main()
