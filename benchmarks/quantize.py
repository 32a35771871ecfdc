"""Every recipe on the `mid` checkpoint: size, time of a step, noise at the stages' outputs, and the photo.

    python benchmarks/quantize.py [--rounds 5] [--work DIR [--reuse]] [--budget 50dB]

Method. One `mid` checkpoint with random weights (8 blocks, 8 heads x 64), exported in float32 for 512-pixel tiles.
Calibration: three simulated Live Photos of one tile each. Quality: one tile of another photograph, restored by the
whole pipeline with the float32 engines and with each recipe's; PSNR is the lower of the blended photo's and the 16-bit
result's. SQNR is the stage's with the float32 engines' own inputs, all outputs together, the worst of the six steps.
Time: one run of RestorationNet for one tile, everything in one process, all engines and the PyTorch reference (eager,
float32) taking turns round after round. A turn is three runs, as sampling runs one network step after step; the first,
which meets the caches and the still spinning threads of whoever ran before, does not count, the quicker one of the
others does. Quoted are the median and the ratios within each round. A recipe is quantized in a process of its own,
whose wall time and peak resident set are quoted. int8-tensorrt and fp8 are checked on a CPU, not timed: they are not
meant for one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from common import photograph, run_worker, summary, write_record

from livemoments.bundle import Bundle
from livemoments.distances import sqnr_db
from livemoments.graphs.float_keys_values import FloatKeysValues
from livemoments.live_photo import LivePhoto
from livemoments.quantize.recipes import Recipe, load_recipe
from livemoments.quantize.search.photo_loss import PhotoLoss, open_photo_loss
from livemoments.quantize.search.sensitivity import stage_sqnr_db
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.keys_values.codecs import KV_DTYPES, find_codec
from livemoments.simulated_clip import simulate_live_photo
from livemoments.types import Size, Stage

TILE = Size(512, 512)
OVERLAP_PX = 64
CALIBRATION_PHOTOS = ("astronaut", "chelsea", "rocket")
RECIPES = ("fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "int8-tensorrt", "fp8")
UNTIMED = ("int8-tensorrt", "fp8")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8, not smoothed": ("int8", {"smoothquant_alpha": None}),
    "int8, one range for all steps": ("int8", {"step_ranges": False}),
    "int4-weights, blocks of 128": ("int4-weights", {"block_size": 128}),
    "int4-weights, plain rounding": ("int4-weights", {"method": "rtn"}),
}
"""Recipes with one thing changed: what that thing is worth. Not timed."""
TURN_RUNS = 3
EAGER, SOURCE = "PyTorch eager fp32", "fp32"
_MARGIN = 1.15
"""Photographs are this much larger than the clip that is simulated from them."""


def prepare(work: Path) -> None:
    """Checkpoint, bundle and calibration photos, unless an earlier run left them."""
    from skimage import data

    from livemoments.export.pipeline import export_bundle
    from livemoments.reference.random_checkpoint import make_checkpoint

    if not (work / "checkpoint").exists():
        make_checkpoint(work / "checkpoint", size="mid", seed=0)
    if not (work / SOURCE).exists():
        export_bundle(work / "checkpoint", work / SOURCE, tiles=(TILE,), overlap=OVERLAP_PX, verify="none")
    sides = (round(TILE.width * _MARGIN), round(TILE.height * _MARGIN))
    for number, name in enumerate(CALIBRATION_PHOTOS):
        pixels = cv2.resize(getattr(data, name)(), sides, interpolation=cv2.INTER_CUBIC)
        clip = simulate_live_photo(pixels, seed=number)
        for part, image in (("lr", clip.frame), ("ref", clip.photo), ("ref_lr", clip.photo_frame)):
            (work / "photos" / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(work / "photos" / part / f"{name}.png"), np.ascontiguousarray(image[..., ::-1]))


def find_recipe(name: str) -> Recipe:
    """A shipped recipe, or a variant of one."""
    base, changes = VARIANTS.get(name, (name, {}))
    return msgspec.structs.replace(load_recipe(base), **changes)


def quantize(work: Path, recipe: str, budget: str) -> dict[str, Any]:
    """The worker: one recipe; what it did to how many layers."""
    from livemoments.quantize.calibrate.run import calibrate_for
    from livemoments.quantize.pipeline import quantize as run

    if budget:
        done = run(
            work / SOURCE,
            work / f"{recipe} {budget}",
            recipe=recipe,
            budget=budget,
            calibration=work / "photos",
            photos=1,
            work=work / "journal",
            allow_slower=True,
            overwrite=True,
        )
        return {"actions": dict(done.layers), "search": done.search.to_json() if done.search else None}
    found = find_recipe(recipe)
    calibration = None
    started = time.perf_counter()
    if found.needs_calibration:
        calibration = calibrate_for(found, Bundle.open(work / SOURCE), work / "photos", work=work / "calibration")
    calibrated = time.perf_counter()
    done = run(
        work / SOURCE, work / recipe, recipe=found, calibration=calibration, allow_slower=True, check_speed=False,
        overwrite=True,
    )  # fmt: skip
    return {
        "actions": dict(done.layers),
        "calibration_s": round(calibrated - started, 1),
        "quantize_s": round(time.perf_counter() - calibrated, 1),
    }


def stage_bytes(bundle: Bundle, *stages: Stage) -> int:
    """Bytes of some stages' files, or of all."""
    names = {n for s in stages or Stage for g in bundle.stage(s).graphs for n in (g.path, *g.weights)}
    return sum(bundle.manifest.files[name].bytes for name in names)


def probe_photo() -> LivePhoto[Photo]:
    """A simulated Live Photo of a photograph that calibration does not see; one tile is cut from its middle."""
    clip = simulate_live_photo(photograph(round(TILE.height * _MARGIN), round(TILE.width * _MARGIN)), seed=9)
    return clip.map(Photo)


def compare(work: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Quality and size of every bundle beside the source's."""
    source = Bundle.open(work / SOURCE)
    rows: dict[str, dict[str, Any]] = {}
    transformers = (Stage.REFERENCE, Stage.RESTORATION)
    with open_photo_loss(source, [probe_photo()], parent=work) as loss:
        for name in names:
            bundle = Bundle.open(work / name)
            row: dict[str, Any] = {
                "bytes": stage_bytes(bundle),
                "share_of_bytes": round(stage_bytes(bundle) / stage_bytes(source), 4),
                "share_of_transformer_bytes": round(
                    stage_bytes(bundle, *transformers) / stage_bytes(source, *transformers), 4
                ),
            }
            for stage in transformers:
                with FloatKeysValues(OrtBackend()).open(bundle, stage, TILE) as engine:
                    values = stage_sqnr_db(engine, loss.calls(stage), loss.points)
                row[f"{stage}_sqnr_db"] = round(min(values), 2)
            row["photo_psnr_db"] = round(loss.score_bundle(bundle, OrtBackend()).psnr_db, 2)
            rows[name] = row
            print(f"{name:<16} photo {row['photo_psnr_db']:.1f} dB", flush=True)
        rows["kv"] = compare_kv(loss)
    return rows


def compare_kv(loss: PhotoLoss) -> dict[str, Any]:
    """What storing keys and values costs: their own SQNR, bytes a number, and the photo."""
    from livemoments.runtime.restore import restore

    photo = loss.photos[0]

    def image(dtype: str) -> np.ndarray:
        return restore(
            loss.bundle, photo.frame, photo.photo, photo.photo_frame, reference="phase-split", kv_dtype=dtype,
            bit_depth=16, pad_small=True,
        ).image  # fmt: skip

    tensors = [array for call in loss.calls(Stage.REFERENCE) for array in call.outputs.values()]
    exact = image("native")
    rows = {}
    for dtype in KV_DTYPES[1:]:
        codec = find_codec(dtype)
        noise = [sqnr_db(codec.decode(codec.encode(array), array.dtype), array) for array in tensors[::7]]
        stored = sum(codec.encode(array).nbytes for array in tensors[::7])
        started = time.perf_counter()
        found = image(dtype)
        rows[dtype] = {
            "sqnr_db": round(statistics.median(noise), 2),
            "bytes_per_number": round(stored / sum(array.size for array in tensors[::7]), 3),
            "photo_psnr_db": round(
                -10 * float(np.log10(np.mean((found / 65535 - exact / 65535) ** 2))), 2
            ),
            "restore_s": round(time.perf_counter() - started, 1),
        }  # fmt: skip
        print(f"K/V as {dtype:<9} photo {rows[dtype]['photo_psnr_db']:.1f} dB", flush=True)
    return rows


@contextlib.contextmanager
def steps(work: Path, names: list[str]) -> Iterator[dict[str, Callable[[], object]]]:
    """One run of RestorationNet by each of the engines and by the PyTorch reference, on inputs of equal shape."""
    import torch

    from livemoments.export.references import References
    from livemoments.reference.checkpoint import load_restoration_net, read_configs, read_prompt
    from livemoments.reference.layout import locate
    from livemoments.reference.mmdit import BlockGuidance, BlockKV

    source = Bundle.open(work / SOURCE)
    files = locate(work / "checkpoint")
    configs = read_configs(files)
    prompt = read_prompt(files, configs.transformer)
    references = References(files, configs, prompt, source.manifest.schedule, source.manifest.kv_layout)
    case = references.case(Stage.RESTORATION, TILE)
    tokens = case.inputs["reference_k.0"].shape[1] - source.manifest.model.text_tokens
    parts = [
        [
            torch.from_numpy(array)
            for part in "kv"
            for array in np.split(case.inputs[f"reference_{part}.{i}"], [tokens], 1)
        ]
        for i in range(source.manifest.model.num_blocks)
    ]
    motion = torch.from_numpy(case.inputs["motion_bias"])  # already projected; PyTorch projects it again, as upstream
    guidance = [
        BlockGuidance(BlockKV(image_k, image_v, text_k, text_v), own)
        for (image_k, text_k, image_v, text_v), own in zip(parts, motion, strict=True)
    ]
    network = load_restoration_net(files, configs.transformer, torch.float32, torch.device("cpu"))
    latent = torch.from_numpy(case.inputs["latent"])
    timestep = torch.tensor([source.manifest.schedule.points[0].timestep])
    text = (prompt.tokens.float()[:1], prompt.pooled.float()[:1])

    def eager() -> object:
        with torch.inference_mode():
            return network(latent, timestep, *text, guidance)

    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {EAGER: eager}
        for name in names:
            engine = stack.enter_context(OrtBackend().open(Bundle.open(work / name), Stage.RESTORATION, TILE))
            feed = engine.cast(dict(case.inputs))
            runs[name] = lambda engine=engine, feed=feed: engine.run(feed)  # type: ignore[misc]
        yield runs


def time_turn(run: Callable[[], object]) -> float:
    """Seconds of the quickest run of a turn; the first does not count."""
    took = []
    for _ in range(TURN_RUNS):
        started = time.perf_counter()
        run()
        took.append(time.perf_counter() - started)
    return min(took[1:])


def time_steps(work: Path, names: list[str], rounds: int) -> dict[str, Any]:
    with steps(work, names) as runs:
        for run in runs.values():
            run()
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            for name, run in runs.items():
                seconds[name].append(time_turn(run))
            print(f"round {number + 1}/{rounds}", flush=True)

    def ratio(base: str, name: str) -> dict[str, float]:
        return summary([round(a / b, 3) for a, b in zip(seconds[base], seconds[name], strict=True)])

    return {
        name: {
            "step_ms": summary([round(1e3 * s, 1) for s in own]),
            "times_as_fast_as_eager": ratio(EAGER, name),
            "times_as_fast_as_fp32_engine": ratio(SOURCE, name),
        }
        for name, own in seconds.items()
    }


def show(rows: dict[str, Any], speeds: dict[str, Any]) -> None:
    """The table of docs/quantization.md."""
    print("\n| recipe | transformers' bytes | step, ms | against fp32 engine | SQNR ref / rest, dB | photo, dB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        if "photo_psnr_db" not in row:
            continue
        speed = speeds.get(name)
        took = f"{speed['step_ms']['median']:.0f}" if speed else "-"
        fast = f"{speed['times_as_fast_as_fp32_engine']['median']:.2f}" if speed else "-"
        print(
            f"| {name} | {row['share_of_transformer_bytes']:.3f} | {took} | {fast} "
            f"| {row['reference_sqnr_db']:.1f} / {row['restoration_sqnr_db']:.1f} | {row['photo_psnr_db']:.1f} |"
        )
    for name in (EAGER, SOURCE):
        print(f"{name}: {speeds[name]['step_ms']['median']:.0f} ms a step")


def make_all(work: Path, recipes: list[str], budget: str) -> dict[str, Any]:
    """Quantize with every recipe, each in its own process."""
    made = {}
    for recipe, own in [*((name, "") for name in recipes), *([("int4-weights", budget)] if budget else [])]:
        found, cost = run_worker(__file__, str(work), recipe, own)
        name = f"{recipe} {own}".strip()
        made[name] = found | {"wall_s": round(cost.wall_s, 1), "peak_rss_gb": round(cost.peak_rss_bytes / 1e9, 2)}
        print(f"{name}: {cost.wall_s:.0f} s, {cost.peak_rss_bytes / 1e9:.2f} GB", flush=True)
    return made


def kept(path: Path, reuse: bool, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What an earlier run computed, if it may be reused and is there."""
    if reuse and path.exists():
        return json.loads(path.read_text())
    found = compute()
    path.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipes", nargs="+", default=[*RECIPES, *VARIANTS])
    parser.add_argument("--budget", default="", help="also search a mix of int4-weights that keeps this (an hour)")
    parser.add_argument("--work", type=Path, help="keep checkpoint, bundles and calibration here")
    parser.add_argument("--reuse", action="store_true", help="only time again what --work holds from an earlier run")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "RECIPE", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(quantize(Path(options.worker[0]), *options.worker[1:])))
        return
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="livemoments-bench-")))
        work.mkdir(parents=True, exist_ok=True)
        prepare(work)
        made = kept(work / "made.json", options.reuse, lambda: make_all(work, options.recipes, options.budget))
        rows = kept(work / "quality.json", options.reuse, lambda: compare(work, list(made)))
        kv = rows.pop("kv")
        speeds = time_steps(
            work, [SOURCE, *(name for name in made if name not in (*UNTIMED, *VARIANTS))], options.rounds
        )
    record = {"tile_px": TILE.height, "rounds": options.rounds}
    recipes = {name: made[name] | rows[name] | speeds.get(name, {}) for name in made}
    path = write_record(
        "quantize", record | {"baselines": {n: speeds[n] for n in (EAGER, SOURCE)}, "recipes": recipes, "kv": kv}
    )
    show(rows, speeds)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
