"""What is done to one image: restored, measured, small pictures made. The same in this process and on a cluster."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from livemoments.bundle import Bundle
from livemoments.errors import BundleError, EngineError, ImageError, ResourceError, UsageError
from livemoments.heap import give_back_large_blocks
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.base import Backend
from livemoments.runtime.image_files.colour_profiles import match_profile
from livemoments.runtime.image_files.encode import Metadata, encode
from livemoments.runtime.image_files.photo import Photo
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.resize import WindowView
from livemoments.runtime.restore import restore, to_integers
from livemoments.validate.harness.image_inputs import ImageInputs, Role
from livemoments.validate.harness.image_metrics import ImageMetrics, photo_psnr_db
from livemoments.validate.harness.kept_engines import KeptEngines
from livemoments.validate.harness.previews import RESULT, make_previews
from livemoments.validate.harness.run_key import bundle_digest
from livemoments.validate.report_data import ImageResult, finite_number

_STRIP_ROWS = 256


@dataclass(frozen=True)
class RunSpec:
    """What every worker of a run does; can be pickled.

    Attributes:
        bundle: its folder.
        digest: the bundle's, so that a worker on another machine uses the same one.
        settings: how images are restored.
        metrics: makes a worker's metrics, once per worker.
        pictures: whether small pictures are made for the report.
        results: whether the restored photos themselves are kept.
    """

    bundle: Path
    digest: str
    settings: RestoreOptions
    metrics: Callable[[], ImageMetrics]
    pictures: bool = True
    results: bool = False


@dataclass(frozen=True)
class FinishedImage:
    """A result, and what goes with it.

    Attributes:
        result: without the names of its pictures' files.
        pictures: JPEG files by role; the restored photo as PNG.
        features: for metrics of the whole set (:attr:`ImageQuality.features`).
    """

    result: ImageResult
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def failed(cls, name: str, why: str, worker: str = "") -> FinishedImage:
        """An image with which something is wrong."""
        return cls(ImageResult(name=name, status="failed", error=why, worker=worker))


class ImageWorker:
    """Works on one image after another with the same engines and metrics.

    Args:
        spec: what to do.
        bundle: the bundle, if it was opened and checked already.
        backend: replaces the settings' back-end.

    Raises:
        BundleError: the bundle cannot be trusted, or is not the one that the run began with.
    """

    def __init__(self, spec: RunSpec, bundle: Bundle | None = None, backend: Backend | None = None) -> None:
        give_back_large_blocks()
        self.spec = spec
        self.bundle = bundle or Bundle.open(spec.bundle)
        if bundle_digest(self.bundle) != spec.digest:
            raise BundleError(
                spec.bundle,
                f"on {socket.gethostname()} this is not the bundle that the run began with",
                fix="copy the same bundle to this path on every machine",
            )
        self._engines = KeptEngines(
            backend or spec.settings.open_backend(self.bundle), spec.settings.policy(self.bundle)
        )
        self._metrics = spec.metrics()
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def run(self, files: ImageInputs, progress: Progress = SILENT) -> FinishedImage:
        """Restore and measure one image; what is wrong with it alone becomes a result with ``status="failed"``.

        Raises:
            EngineError, BundleError: an engine cannot be opened; no other image would fare better.
            ResourceError: memory ran out.
        """
        try:
            return self._run(files, progress)
        except (ImageError, EngineError, UsageError) as error:
            if error is self._engines.broken:
                raise
            return FinishedImage.failed(files.name, error.message, self.name)
        except MemoryError as error:
            raise ResourceError(
                f"'{files.name}': memory ran out ({error})", fix="use smaller tiles, --batch 1 or fewer workers"
            ) from None

    def close(self) -> None:
        """Close the engines."""
        self._engines.close()

    def _run(self, files: ImageInputs, progress: Progress) -> FinishedImage:
        frame, photo, photo_frame = files.photo("frame"), files.photo("photo"), files.photo_if_there("photo_frame")
        truth, recorded = files.photo_if_there("truth"), files.photo_if_there("recorded")
        if truth is not None:  # the result is in the photo's colours
            truth, _ = match_profile(truth, photo)
        started_s = time.perf_counter()
        result = restore(
            self.bundle,
            LivePhoto(frame, photo, photo_frame),
            self.spec.settings,
            backend=self._engines,
            progress=progress,
        )
        elapsed_s = time.perf_counter() - started_s
        image = result.image
        others: tuple[tuple[Role, Photo | None], ...] = (("truth", truth), ("recorded", recorded))
        for role, other in others:
            if other is not None and other.pixels.shape != image.shape:
                message = f"is {other.size} pixels, the restored photo is {Photo(image).size}"
                raise ImageError(files.paths[role], message)
        inputs = load_inputs(frame, photo, photo_frame, match_profiles=self.spec.settings.compat is None)
        upscaled = whole_image(inputs.frame_view, 8 * image.dtype.itemsize)
        with progress.task("Measuring"):
            quality = self._metrics.quality(image, upscaled, photo.pixels, None if truth is None else truth.pixels)
            seam = self._metrics.seam(image, result.plan)
        pictures = {}
        if self.spec.pictures:
            restored = Photo(image, icc_profile=photo.icc_profile)
            pictures = make_previews(restored, upscaled, photo, truth, recorded)
        if self.spec.results:
            pictures[RESULT] = encode("result.png", image, Metadata(icc_profile=photo.icc_profile), quality=100)[0]
        parity_db = None if recorded is None else photo_psnr_db(image, recorded.pixels)
        pcr = self._metrics.pcr(result, files.corners_of(result.plan.tiles))
        return FinishedImage(
            ImageResult(
                name=files.name,
                status="ok",
                width=image.shape[1],
                height=image.shape[0],
                tiles=len(result.plan.tiles),
                metrics={name: finite_number(value) for name, value in quality.metrics.items()},
                input_metrics={name: finite_number(value) for name, value in quality.input_metrics.items()},
                parity_psnr_db=finite_number(parity_db),
                seam=finite_number(seam),
                pcr={name: float(value) for name, value in pcr.items()},
                seconds=elapsed_s - result.timings.load_seconds,
                tile_seconds=result.timings.tile_run_seconds,
                worker=self.name,
            ),
            pictures,
            quality.features,
        )


def whole_image(view: WindowView, bit_depth: int) -> np.ndarray:
    """A view's whole image as (H, W, 3) uint8 or uint16, computed in strips."""
    height, width = view.size.height, view.size.width
    image = np.empty((height, width, 3), np.uint8 if bit_depth == 8 else np.uint16)
    for y0 in range(0, height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, height - y0)
        image[y0 : y0 + rows] = to_integers(view.window(y0, 0, rows, width), bit_depth)
    return image
