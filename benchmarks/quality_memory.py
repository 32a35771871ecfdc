"""Time and memory of PSNR, SSIM and MS-SSIM on y at 12 megapixels, scikit-image's PSNR and SSIM beside them.

    python benchmarks/quality_memory.py

Method. Two pictures of 3000 x 4000 in uint8, a photograph and the same with noise, written once as .npy files. Each
candidate runs in a fresh process that loads both, measures once, and says how long that took; its peak resident set
comes from the operating system. `load` only imports and loads: what is above it is the metrics' own. Three rounds; the
medians are compared. scikit-image gets y as this package computes it and runs in float64, its default for such input.
Both SSIMs must agree to 1e-4, or the record is not written.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 3000, 4000
ROUNDS = 3
CANDIDATES = ("load", "psnr_ssim", "psnr_ssim_ms_ssim", "scikit-image psnr_ssim")
AGREEMENT = 1e-4


def measure(candidate: str, folder: Path) -> dict[str, Any]:
    from livemoments.validate.quality.fidelity import measure_fidelity

    value, truth = (np.load(folder / f"{name}.npy") for name in ("value", "truth"))
    if candidate == "load":
        return {"s": 0.0}
    if candidate.startswith("scikit-image"):
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity

        from livemoments.validate.quality.luma import luma_of

        start = time.perf_counter()
        planes = [luma_of(pixels).astype(np.float64) for pixels in (truth, value)]
        found: dict[str, Any] = {
            "psnr_y": peak_signal_noise_ratio(*planes, data_range=255),
            "ssim_y": structural_similarity(
                *planes, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
            ),
        }
    else:
        names = ["psnr_y", "ssim_y"] + (["ms_ssim_y"] if candidate.endswith("ms_ssim") else [])
        start = time.perf_counter()
        found = dict(measure_fidelity(value, truth, names))
    return {"s": time.perf_counter() - start, **{name: float(number) for name, number in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=2, metavar=("CANDIDATE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker[0], Path(options.worker[1]))))
        return
    from common import photograph, run_worker, summary, write_record  # imports torch, which is no part of a worker

    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as name:
        truth = photograph(HEIGHT, WIDTH)
        noise = np.random.default_rng(0).integers(-9, 10, truth.shape, np.int16)
        np.save(Path(name) / "truth.npy", truth)
        np.save(Path(name) / "value.npy", np.clip(truth + noise, 0, 255).astype(np.uint8))
        del truth, noise
        runs = {candidate: [run_worker(__file__, candidate, name) for _ in range(ROUNDS)] for candidate in CANDIDATES}
    base = statistics.median(cost.peak_rss_bytes for _, cost in runs["load"])
    rows = {}
    for candidate, found in runs.items():
        peak = statistics.median(cost.peak_rss_bytes for _, cost in found)
        rows[candidate] = {
            "s": {key: round(value, 3) for key, value in summary([result["s"] for result, _ in found]).items()},
            "peak_rss_gb": round(peak / 1e9, 3),
            "above_load_gb": round((peak - base) / 1e9, 3),
            "values": {key: value for key, value in found[0][0].items() if key != "s"},
        }
    ours, theirs = (rows[candidate]["values"] for candidate in (CANDIDATES[1], CANDIDATES[3]))
    for metric, value in ours.items():
        if not math.isclose(value, theirs[metric], rel_tol=0, abs_tol=AGREEMENT):
            raise SystemExit(f"{metric} differs from scikit-image's: {value} and {theirs[metric]}")
    path = write_record("quality-memory", {"picture": f"{WIDTH}x{HEIGHT} uint8", "rounds": ROUNDS, "results": rows})
    for candidate, row in rows.items():
        print(f"{candidate:<24} {row['s']['median']:7.2f} s  peak {row['peak_rss_gb']:.2f} GB")
    print(path)


if __name__ == "__main__":
    main()
