"""How well the trained `small` checkpoint restores: photographs and video frames that it was not trained on.

    python benchmarks/small_quality.py [CHECKPOINT] [--videos DIR] [--photos DIR] [--work DIR [--reuse]] [--quick]
                                       [--sheet FILE] [--chart FILE] [--rounds N]

Method. Sets with ground truth, made as `livemoments synlive build` makes them (half size, the preset live-photo):
scikit-image's photographs of the embedded set under a hand-held camera's motion; frames, five apart, of the clips in
--videos, where things move by themselves; photographs in --photos, shrunk to 1600 pixels first, for a phone's pixels
are soft. Every row is one `livemoments validate` of a bundle on a set: the mean over its images of PSNR and SSIM on y
(BT.601 studio), beside those of the bicubically upscaled frame. The first row and the ablations go through every set,
the others through the embedded one. What changes between the rows:

  unrelated reference   every image has the key photo and the key frame of the next one
  no PCR                every reference tile is cut at its tile's own place
  no motion bias        the checkpoint's point_proj is zero, and exported again
  128-pixel tiles       instead of 64: trained was on crops of 64 pixels
  fp16, int8, …         the bundle, quantized; int8 is calibrated on other motions of the embedded photographs
  4 steps, …, 1 step    upstream's schedule with fewer points
  every-2, frozen, …    when ReferenceNet runs

The photo of every row is compared with the ground truth, not with the fp32 engines'.

Time: whole tiles of 64 pixels (DIS, VAE, all steps), engines loaded, by `measure_tiles`; the rows take turns round
after round, and quoted is the median over the rounds of a row's time by the fp32 row's of the same round. --chart draws
gain against time.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import write_record
from safetensors.torch import load_file, save_file
from small_pictures import draw_chart, draw_sheet

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_checkpoint
from livemoments.cli.progress import reporter
from livemoments.export.pipeline import export_bundle
from livemoments.quantize.calibrate.run import calibrate
from livemoments.quantize.pipeline import quantize_bundle
from livemoments.quantize.recipes import load_recipe
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.upstream_layout import FRAMES, PHOTO_FRAMES, PHOTOS, TRUTHS
from livemoments.types import Size
from livemoments.validate.cost.latency import measure_tiles
from livemoments.validate.datasets.embedded import NAMES, write_embedded_set
from livemoments.validate.options import ValidateOptions
from livemoments.validate.run import validate_bundle
from livemoments.validate.synlive.build import build_set
from livemoments.validate.synlive.clips import images_in

TILE_PX, OVERLAP_PX = 64, 16
WIDE_TILE_PX, WIDE_OVERLAP_PX = 128, 32
STEPS = (6, 4, 3, 2, 1)
POLICIES = ("phase-split", "every-2", "every-3", "frozen")
RECIPES = ("fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "int8-tensorrt", "fp8")
WIDE = f"{WIDE_TILE_PX}-pixel tiles"
UNTIMED = ("int8-tensorrt", "fp8", WIDE)  # the first two are not meant for a CPU
IMAGE_PX = 256  # 25 tiles
EMBEDDED_IMAGES, CLIP_IMAGES, PHOTO_IMAGES = 8, 6, 4
SHRUNK_PX = 1600
CALIBRATION_SEED, SEED = 77, 11
BASE = "fp32, 6 steps"
ABLATIONS = ("unrelated reference", "no PCR", "no motion bias")
TIMED_RUNS = 3


@dataclass(frozen=True)
class Variant:
    """One row: a bundle, a set and settings."""

    bundle: Path
    unrelated: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def build_sets(work: Path, videos: Path | None, photos: Path | None) -> dict[str, Path]:
    """The sets by name; those that exist already are used again."""
    size = Size(IMAGE_PX, IMAGE_PX)
    sets = {"embedded": work / "sets" / "embedded"}
    if not sets["embedded"].is_dir():
        write_embedded_set(sets["embedded"], size=size, count=EMBEDDED_IMAGES, seed=SEED)
    if videos is not None:
        sets["clips"] = work / "sets" / "clips"
        if not sets["clips"].is_dir():
            build_set(videos, sets["clips"], count=CLIP_IMAGES, crop=size, seed=SEED, skip_unusable=True)
    if photos is not None:
        sets["photographs"] = work / "sets" / "photographs"
        if not sets["photographs"].is_dir():
            shrunk = _shrink(photos, work / "shrunk")
            build_set(shrunk, sets["photographs"], photographs=True, count=PHOTO_IMAGES, crop=size, seed=SEED)
    return sets


def _shrink(photos: Path, folder: Path) -> Path:
    for path in images_in(photos):
        pixels = np.round(read_photo(path).unit() * 255).astype(np.uint8)
        scale = SHRUNK_PX / max(pixels.shape[:2])
        if scale < 1:
            pixels = np.asarray(cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        write_image(folder / f"{path.stem}.png", pixels)
    return folder


def with_unrelated_reference(source: Path, folder: Path) -> Path:
    """The set with every image's key photo and key frame taken from the next image."""
    if folder.is_dir():
        return folder
    names = sorted(path.name for path in (source / PHOTOS).iterdir())
    for part in (FRAMES, TRUTHS, PHOTOS, PHOTO_FRAMES):
        (folder / part).mkdir(parents=True)
        moved = part in (PHOTOS, PHOTO_FRAMES)
        for name, other in zip(names, [*names[1:], names[0]], strict=True):
            shutil.copyfile(source / part / (other if moved else name), folder / part / name)
    return folder


def without_motion_bias(checkpoint: Path, folder: Path) -> Path:
    """A copy of the checkpoint whose motion embeddings are projected to nothing."""
    shutil.copytree(checkpoint, folder)
    (weights,) = (folder / "livemoments" / "transformer").glob("*.safetensors")
    state = load_file(weights)
    zeroed = {name: tensor.zero_() if "point_proj" in name else tensor for name, tensor in state.items()}
    save_file(zeroed, weights)
    return folder


def prepare(checkpoint: Path, work: Path, *, quick: bool) -> dict[str, Variant]:
    """Every bundle that the rows need, and the rows."""
    progress = reporter()
    tile = (Size(TILE_PX, TILE_PX),)
    base = work / "bundle"
    if not base.is_dir():
        export_bundle(checkpoint, base, tiles=tile, overlap=OVERLAP_PX, steps=STEPS, progress=progress)
    still = work / "no-motion-bundle"
    if not still.is_dir():
        zeroed = without_motion_bias(checkpoint, work / "no-motion")
        export_bundle(zeroed, still, tiles=tile, overlap=OVERLAP_PX, verify="none", progress=progress)
    wide = work / "wide-bundle"
    if not wide.is_dir():
        tiles = (Size(WIDE_TILE_PX, WIDE_TILE_PX),)
        export_bundle(checkpoint, wide, tiles=tiles, overlap=WIDE_OVERLAP_PX, verify="none", progress=progress)
    rows = {
        BASE: Variant(base),
        "unrelated reference": Variant(base, unrelated=True),
        "no PCR": Variant(base, settings={"no_pcr": True}),
        "no motion bias": Variant(still),
        WIDE: Variant(wide),
    }
    calibration = work / "calibration"
    if not calibration.is_dir():
        write_embedded_set(calibration, size=Size(IMAGE_PX, IMAGE_PX), count=4, seed=CALIBRATION_SEED)
    for recipe in ("fp16", "int8") if quick else RECIPES:
        if not (work / recipe).is_dir():
            ranges = None
            if load_recipe(recipe).needs_calibration:
                ranges = calibrate(base, calibration, steps=STEPS, work=work / "statistics", progress=progress)
            options = {"calibration": ranges, "allow_slower": True, "check_speed": False}
            quantize_bundle(base, work / recipe, recipe=recipe, progress=progress, **options)
        rows[recipe] = Variant(work / recipe)
    if not quick:
        rows |= {name_of(steps): Variant(base, settings={"steps": steps}) for steps in STEPS[1:]}
        rows |= {policy: Variant(base, settings={"reference": policy}) for policy in POLICIES}
    return rows


def measure(variant: Variant, dataset: Path, work: Path) -> dict[str, float]:
    """Mean PSNR (y, dB) and SSIM (y) of the restored photos, and of the upscaled frames."""
    data = with_unrelated_reference(dataset, work / "unrelated" / dataset.name) if variant.unrelated else dataset
    report = validate_bundle(
        variant.bundle,
        data=data,
        options=ValidateOptions(restore=RestoreOptions(**variant.settings), check_itself=False),
        progress=reporter(),
    )
    found = {metric.name: metric for metric in report.metrics}
    psnr, ssim = found["psnr_y"], found["ssim_y"]
    values = (psnr.mean, ssim.mean, psnr.input_mean, ssim.input_mean)
    if any(image.status != "ok" for image in report.images) or None in values:
        raise SystemExit(f"{variant}: an image of {dataset} failed")
    names = ("psnr_y_db", "ssim_y", "input_psnr_y_db", "input_ssim_y")
    return {name: round(float(value or 0), 4) for name, value in zip(names, values, strict=True)}


def time_rows(rows: dict[str, Variant], rounds: int) -> dict[str, dict[str, float]]:
    """Every row's time for a tile: its median, and the median of its ratios to the fp32 row's."""
    names = [name for name in rows if name not in (*ABLATIONS, *UNTIMED)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            bundle, settings = Bundle.open(rows[name].bundle), RestoreOptions(**rows[name].settings)
            found = measure_tiles(bundle, settings, OrtBackend(), runs=TIMED_RUNS, warmup=1)
            seconds[name].append(statistics.median(found.seconds))
        print(f"timed round {number + 1}/{rounds}", flush=True)
    result = {}
    for name, mine in seconds.items():
        ratios = [one / base for one, base in zip(mine, seconds[BASE], strict=True)]
        result[name] = {"tile_s": round(statistics.median(mine), 4), "of_fp32": round(statistics.median(ratios), 3)}
    return result


def series_of(
    table: dict[str, dict[str, dict[str, float]]], times: dict[str, dict[str, float]]
) -> dict[str, dict[str, tuple[float, float]]]:
    """(time by fp32's, gain in dB on the embedded set) of the rows: by sampling steps, reference policies, recipes."""
    series = {
        "sampling steps": [BASE, *(name_of(steps) for steps in STEPS if name_of(steps) in times)],
        "reference policies": [BASE, *(name for name in POLICIES if name in times)],
        "recipes": [BASE, *(name for name in RECIPES if name in times)],
    }
    return {
        label: {name: (times[name]["of_fp32"], gain_db(table[name]["embedded"])) for name in names}
        for label, names in series.items()
    }


def name_of(steps: int) -> str:
    """A row's name."""
    return f"{steps} step{'s' if steps > 1 else ''}"


def gain_db(found: dict[str, float]) -> float:
    """How far a row is above the upscaled frame."""
    return found["psnr_y_db"] - found["input_psnr_y_db"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", nargs="?", help="another one")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="clips, or folders of consecutive frames")
    parser.add_argument("--photos", type=Path, metavar="DIR")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep sets and bundles here")
    parser.add_argument("--reuse", action="store_true", help="use what --work already holds")
    parser.add_argument("--quick", action="store_true", help="without step counts, policies and weight-only recipes")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw crops of the embedded set")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw gain against time; needs --rounds")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of timing (5); 0: no times")
    options = parser.parse_args()
    if options.work is not None and options.work.is_dir() and not options.reuse:
        parser.error(f"{options.work} exists; pass --reuse to use what it holds")
    with tempfile.TemporaryDirectory(prefix="livemoments-bench-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        sets = build_sets(work, options.videos, options.photos)
        rows = prepare(options.checkpoint or trained_checkpoint("small"), work, quick=options.quick)
        table: dict[str, dict[str, dict[str, float]]] = {}
        for name, variant in rows.items():
            measured = sets if name in (BASE, *ABLATIONS) else {"embedded": sets["embedded"]}
            table[name] = {dataset: measure(variant, folder, work) for dataset, folder in measured.items()}
            print(name, *(f"{d} {v['psnr_y_db']:.2f} dB {v['ssim_y']:.4f}" for d, v in table[name].items()), flush=True)
        if options.sheet is not None:
            names = sorted(item.name for item in (sets["embedded"] / PHOTOS).iterdir())[: len(NAMES)]
            draw_sheet(sets["embedded"], names, rows[BASE].bundle, options.sheet)
        times = time_rows(rows, options.rounds) if options.rounds else {}
        if options.chart is not None and times:
            draw_chart(series_of(table, times), options.chart)
    images = {name: len(list((folder / PHOTOS).iterdir())) for name, folder in sets.items()}
    print(f"written to {write_record('small-quality', {'images': images, 'rows': table, 'times': times})}")


if __name__ == "__main__":
    main()
