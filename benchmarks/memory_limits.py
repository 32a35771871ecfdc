"""Random settings under a hard memory limit: what is said to fit fits, and what is not falls back to the same picture.

    python benchmarks/memory_limits.py [--settings 20] [--seed N] [--jobs N]

Method. A setting is a random photo size, and a random one of the plans that 'livemoments plan' compares for it (tiles
at once, policy, residency, where keys and values lie). The trained small network that ships restores the photo in a
fresh process with one thread and the plan's arguments.

  said to fit   the limit is 1.1 to 1.5 times the predicted peak (a prediction is held to 10 %): the process ends well,
                and nothing was changed on the way
  does not fit  the limit is below nine tenths of the predicted peak, and at least 1.1 times that of the plan that takes
                the least: the process ends well after 'memory ran out', and the picture is the unlimited one's

The limit is RLIMIT_DATA, which the kernel enforces by refusing memory. A limit of the address space would count mapped
files; a control group needs rights that CI and many users lack, and kills where it cannot refuse. RLIMIT_DATA counts
private memory that was reserved, touched or not, and no pages of files; the prediction is of the resident set. The
difference is added to every limit: what a process that has opened the networks reserves beyond its resident set
(measured), and of each network's arena, whose regions double, as much as it holds (counted).
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
from livemoments.profiles.planner.engines import ARENA_STAGES
from livemoments.profiles.planner.plan import BATCHES, Costs, Plan, PlanRequest, make_plans
from livemoments.profiles.read import load_profile
from livemoments.types import Size

ACCURACY = 1.1
"""How far a prediction may be off, as benchmarks/plan_memory.py holds it."""
SIDES_PX = (128, 144, 160, 192, 208)
POLICIES = ("per-step", "phase-split", "frozen")
STEPS = 1
_DIFFERENCE = """
from pathlib import Path
from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle
from livemoments.heap import give_back_large_blocks
from livemoments.runtime import restore
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.types import TRANSFORMER_STAGES
import cv2
give_back_large_blocks()
bundle, backend = Bundle.open(trained_bundle()), OrtBackend("cpu", 1)
engines = [backend.open(bundle, stage, bundle.tile_sizes[0]) for stage in TRANSFORMER_STAGES]
held = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
print(int(held["VmData"].split()[0]) - int(held["VmRSS"].split()[0]))
"""
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def difference_bytes() -> int:
    """RLIMIT_DATA's count less the resident set, of a process that has opened the networks."""
    done = subprocess.run([sys.executable, "-c", _DIFFERENCE], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


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
        return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    picture = cv2.imread(str(output))
    assert picture is not None  # it was just written
    return picture, json.loads(done.stdout)["metadata"].get("memory_fallbacks", [])


def reserved_bytes(plan: Plan) -> int:
    """What the arenas of a plan may reserve and never touch."""
    return sum(costs().of(stage, Size.parse(plan.tile), plan.batch).first_run_bytes for stage in ARENA_STAGES)


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


def try_fitting(work: Path, rng: random.Random, difference: int) -> dict[str, Any]:
    """A plan that is said to fit."""
    photo, plans = plans_of(rng)
    plan = rng.choice(plans)
    budget = int(plan.peak_bytes * rng.uniform(ACCURACY, 1.5))
    write_images(work, photo)
    found = restore(work, plan, budget + difference + reserved_bytes(plan))
    problem = found if isinstance(found, str) else "; ".join(found[1])
    return _row(photo, plan, budget) | {"kept": not problem, "problem": problem}


def try_failing(work: Path, rng: random.Random, difference: int) -> dict[str, Any]:
    """A plan that is said not to fit, where another one is."""
    plan, least = None, 0
    while plan is None:
        photo, plans = plans_of(rng)
        least = int(min(plan.peak_bytes for plan in plans) * ACCURACY)
        too_large = [plan for plan in plans if plan.peak_bytes / ACCURACY > least and plan.residency == "all"]
        plan = rng.choice(too_large) if too_large else None
    budget = int(rng.uniform(least, plan.peak_bytes / ACCURACY))
    write_images(work, photo)
    expected, found = restore(work, plan, None), restore(work, plan, budget + difference)
    assert not isinstance(expected, str), expected
    if isinstance(found, str):
        return _row(photo, plan, budget) | {"kept": False, "problem": found}
    off = int(np.abs(found[0].astype(int) - expected[0]).max())
    kept = bool(found[1]) and off <= 1
    return _row(photo, plan, budget) | {"kept": kept, "fallbacks": found[1], "levels_off": off}


def _row(photo: Size, plan: Plan, budget: int) -> dict[str, Any]:
    return {
        "photo": str(photo),
        "arguments": " ".join(plan.arguments),
        "predicted_mb": round(plan.peak_bytes / 1e6, 1),
        "budget_mb": round(budget / 1e6, 1),
    }


KINDS = {"said to fit": try_fitting, "does not fit": try_failing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--jobs", type=int, default=1, help="processes at once: each has a limit of its own")
    options = parser.parse_args()
    difference = difference_bytes()
    for batch in BATCHES:  # before there are threads: onnx's shape inference is not made for several
        for stage in costs().bundle.manifest.model.stages:
            costs().of(stage, costs().bundle.tile_sizes[0], batch)

    def attempt(kind: str, number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
            row = KINDS[kind](Path(name), random.Random(f"{options.seed} {kind} {number}"), difference)
        print(kind, json.dumps(row), flush=True)
        return row

    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {kind: [pool.submit(attempt, kind, n) for n in range(options.settings)] for kind in KINDS}
    rows = {kind: [future.result() for future in futures] for kind, futures in waiting.items()}
    kept = {kind: sum(row["kept"] for row in of_kind) for kind, of_kind in rows.items()}
    about = {"seed": options.seed, "limit": "RLIMIT_DATA", "difference_mb": round(difference / 1e6, 1)}
    write_record("memory-limits", {**about, "settings": options.settings, "kept": kept, "rows": rows})
    print(kept)
    sys.exit(int(any(count < options.settings for count in kept.values())))


if __name__ == "__main__":
    main()
