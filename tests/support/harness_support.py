"""A small data set, a bundle of fake engines and simple metrics, for the tests of runs over many images."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from restore_images import shrunk, textured

from livemoments.bundle import Bundle
from livemoments.live_photo import LivePhoto
from livemoments.runtime.image_files.photo import write_image
from livemoments.runtime.restore import RestoreResult
from livemoments.runtime.tiles.plan import TilePlan
from livemoments.types import Size
from livemoments.validate.datasets.index import Dataset
from livemoments.validate.harness.image_metrics import ImageMetrics
from livemoments.validate.harness.options import RunOptions
from livemoments.validate.harness.run import run_images
from livemoments.validate.quality.meter import ImageQuality
from livemoments.validate.report_data import ImageResult

PHOTO = Size(96, 112)


def make_dataset(
    folder: Path, count: int, *, size: Size = PHOTO, rejected: tuple[tuple[str, str], ...] = ()
) -> Dataset:
    """``count`` photos with ground truth; written by hand, so that broken ones can be among them."""
    items = []
    for index in range(count):
        name = f"photo{index:03}"
        pixels = textured(size, seed=index)
        frame = Size(size.height * 2 // 3, round(size.width * 2 / 3))
        pictures = {
            "lr": shrunk(pixels, frame, shift_px=1),
            "ref": pixels,
            "ref_lr": shrunk(pixels, frame),
            "gt": np.roll(pixels, 1, axis=1),
        }
        paths = {part: folder / part / f"{name}.png" for part in pictures}
        for part, picture in pictures.items():
            write_image(paths[part], picture)
        parts = dict(zip(("frame", "photo", "photo_frame", "truth"), paths.values(), strict=True))
        items.append(LivePhoto(**parts, name=name, sha256=f"sha-{name}"))
    return Dataset(
        name="tiny", root=folder, items=tuple(items), rejected=rejected, descriptor=None, sha256="all", has_truth=True
    )


def run(bundle: Bundle, dataset: Dataset, work: Path, **keywords: Any) -> tuple[ImageResult, ...]:
    """A run with simple metrics, unless others are given; keywords are of ``run_images`` or of its options."""
    keywords = {"metrics": simple_metrics, **keywords}
    own = {name.name: keywords.pop(name.name) for name in fields(RunOptions) if name.name in keywords}
    return run_images(bundle, dataset, work=work, options=RunOptions(**own), **keywords)


def spoil(item: LivePhoto[Path]) -> LivePhoto[Path]:
    """Cut its photo short, as after the index was made."""
    item.photo.write_bytes(item.photo.read_bytes()[:400])
    return replace(item, sha256=item.sha256 + "-spoiled")


def with_item(dataset: Dataset, index: int, item: LivePhoto[Path]) -> Dataset:
    items = list(dataset.items)
    items[index] = item
    return replace(dataset, items=tuple(items))


def without_times(result: ImageResult) -> ImageResult:
    """What must be equal whoever made it, and when."""
    import msgspec

    return msgspec.structs.replace(result, seconds=0.0, tile_seconds=(), worker="")


def pictures_in(work: Path) -> dict[str, bytes]:
    folder = work / "images"
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def scores(
    output: np.ndarray, upscaled: np.ndarray, reference: np.ndarray, truth: np.ndarray | None
) -> dict[str, float | None]:
    """A number of every argument, so that a mix-up shows."""
    wide = [array.astype(np.int64) for array in (output, upscaled, reference)]
    distance = None if truth is None else float(np.abs(wide[0] - truth).mean())
    return {
        "mean": float(wide[0].mean()),
        "to_input": float(np.abs(wide[0] - wide[1]).mean()),
        "to_photo": float(np.abs(wide[0] - wide[2]).mean()),
        "to_truth": distance,
        "endless": float("inf"),
    }


def quality(output: np.ndarray, upscaled: np.ndarray, reference: np.ndarray, truth: np.ndarray | None) -> ImageQuality:
    features = {"patches.output": output.reshape(-1, 3)[:5].astype(np.float32)}
    return ImageQuality(
        scores(output, upscaled, reference, truth), scores(upscaled, upscaled, reference, truth), features
    )


def seam(image: np.ndarray, plan: TilePlan) -> float | None:
    return None if len(plan.tiles) == 1 else float(image[:, plan.tiles[1].x].mean())


def pcr(result: RestoreResult, fp32_corners: np.ndarray | None) -> Mapping[str, float]:
    found = {"clamp_rate": float(np.mean([corner.clamped for _, corner in result.corners]))}
    return found if fp32_corners is None else found | {"fp32_mean": float(fp32_corners.mean())}


def simple_metrics() -> ImageMetrics:
    """Plain arithmetic; a function of a module, so that it can be sent to another process."""
    return ImageMetrics(quality, seam, pcr)


@dataclass(frozen=True)
class Slow:
    """The simple metrics, with a pause."""

    pause_s: float

    def __call__(self) -> ImageMetrics:
        return ImageMetrics(self._measure, seam, pcr)

    def _measure(
        self, output: np.ndarray, upscaled: np.ndarray, reference: np.ndarray, truth: np.ndarray | None
    ) -> ImageQuality:
        time.sleep(self.pause_s)
        return quality(output, upscaled, reference, truth)


@dataclass(frozen=True)
class DeadlyOnce:
    """Metrics that kill their process at the first picture; the marker file says that it was done."""

    marker: Path

    def __call__(self) -> ImageMetrics:
        return ImageMetrics(self._kill, seam, pcr)

    def _kill(
        self, output: np.ndarray, upscaled: np.ndarray, reference: np.ndarray, truth: np.ndarray | None
    ) -> ImageQuality:
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return quality(output, upscaled, reference, truth)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


@dataclass(frozen=True)
class AlwaysDeadly:
    """Metrics that kill their process at every picture."""

    def __call__(self) -> ImageMetrics:
        return ImageMetrics(self._kill, seam, pcr)

    def _kill(
        self, output: np.ndarray, upscaled: np.ndarray, reference: np.ndarray, truth: np.ndarray | None
    ) -> ImageQuality:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")
