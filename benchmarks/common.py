"""What every benchmark shares: test photographs, fresh measured processes, and the record that is written."""

from __future__ import annotations

import datetime
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from livemoments.simulated_clip import simulate_live_photo
from livemoments.validate.cost.fresh_process import ProcessCost, measure_process
from livemoments.validate.cost.machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def photograph(height: int, width: int) -> np.ndarray:
    """A real photograph resized to (height, width, 3) uint8."""
    from skimage import data

    pixels: np.ndarray = cv2.resize(data.coffee(), (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels


def write_live_photo(folder: Path, height: int, width: int) -> dict[str, Path]:
    """A simulated Live Photo with a photo of exactly height x width, as PNG files by kind."""
    clip = simulate_live_photo(photograph(round(height * 1.2), round(width * 1.2)))
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for kind, pixels, scale in (
        ("photo", clip.photo, 1),
        ("frame", clip.frame, 2),
        ("photo_frame", clip.photo_frame, 2),
    ):
        exact = cv2.resize(pixels, (width // scale, height // scale), interpolation=cv2.INTER_CUBIC)
        paths[kind] = folder / f"{kind}.png"
        cv2.imwrite(str(paths[kind]), exact[..., ::-1])
    return paths


def run_worker(script: str, *arguments: str) -> tuple[dict[str, Any], ProcessCost]:
    """Run a benchmark script as a fresh worker process; its last line of output is its JSON result."""
    cost = measure_process([sys.executable, script, "--worker", *arguments])
    if cost.returncode != 0:
        raise SystemExit(f"worker {' '.join(arguments)} failed:\n{cost.stdout}\n{cost.stderr}")
    return json.loads(cost.stdout.strip().splitlines()[-1]), cost


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _without_folders(argument: str) -> str:
    """A record is read elsewhere, where this machine's folders mean nothing."""
    return "PATH" if argument.startswith("/") else argument


def write_record(name: str, record: dict[str, Any]) -> Path:
    """Write a benchmark's record beside its date, machine and command to ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {
        "benchmark": name,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *map(_without_folders, sys.argv[1:])]),
        "machine": describe_machine(),
    }
    path.write_text(json.dumps(head | record, indent=1) + "\n")
    return path
