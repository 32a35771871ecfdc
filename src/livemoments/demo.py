"""The demonstration: a photograph that the small checkpoint was not trained on is restored, and parity, quality and
cost are measured. In a minute with engines that come with the package, or the whole way from the checkpoint.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle, trained_checkpoint, trained_recording
from livemoments.demo_images import load_images
from livemoments.demo_picture import write_comparison
from livemoments.errors import OutputError
from livemoments.live_photo import LivePhoto
from livemoments.progress import SILENT, Progress
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.runtime.image_files.photo import read_photo, write_image
from livemoments.runtime.inputs import load_inputs
from livemoments.runtime.options import RestoreOptions
from livemoments.runtime.tiles.plan import plan_balanced
from livemoments.store.names import check_utf8
from livemoments.types import Size
from livemoments.validate.cost.latency import measure_tiles
from livemoments.validate.cost.total import cost_of_run
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.options import DataOptions, ValidateOptions
from livemoments.validate.quality.fidelity import psnr_y
from livemoments.validate.recording.opening import open_recording
from livemoments.validate.recording.store import Recording
from livemoments.validate.report.numbers import format_bytes
from livemoments.validate.report.terminal_text import report_text
from livemoments.validate.report_data import ValidationReport
from livemoments.validate.run import validate_bundle

TILE = Size(64, 64)
OVERLAP_PX = 16
PART = Size(256, 304)
"""What the short demonstration restores of the photograph: 30 tiles."""
_DETAIL_AT = (0.78, 0.62)
"""Centre of the enlarged detail, (y, x), as fractions of the picture."""


@dataclass(frozen=True, slots=True)
class _Extent:
    """How much is done, and how long that takes.

    Attributes:
        part: the part of the photograph that is restored; ``None``: all of it.
        batch: tiles computed at once.
        photos, photo_size: how many photos of which size the set has whose quality is measured.
        timed_runs: how often every stage is timed; 0: the cost is that of the restoration.
        per_tile, besides: what it all takes, in units of a single tile's time: for each tile of the photograph, and for
            the rest. From runs on two cores of a Xeon; the first tile, which is timed here, scales them.
        left_out: what is shortened, in words.
    """

    part: Size | None
    batch: int
    photos: int
    photo_size: Size
    timed_runs: int
    per_tile: float
    besides: float
    left_out: str


_SHORT = _Extent(
    part=PART,
    batch=4,
    photos=2,
    photo_size=Size(128, 128),
    timed_runs=0,
    per_tile=0.8,
    besides=30,
    left_out="the engines and the PyTorch reference's recording of two tiles come with the package; restored is a part "
    "of the photograph; the cost is that of this one run; the engines' checks of themselves are left out",
)
_FULL = _Extent(
    part=None,
    batch=1,
    photos=3,
    photo_size=Size(256, 256),
    timed_runs=5,
    per_tile=2.1,
    besides=300,
    left_out="",
)


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demonstration measured. Times are of this machine, this minute; parity is not.

    ``psnr_db`` and ``bicubic_psnr_db`` are of the restored photo and of the upscaled frame, on y; ``None`` where there
    is no truth.
    """

    folder: Path
    picture: Path
    validation: ValidationReport
    tiles: int
    psnr_db: float | None
    bicubic_psnr_db: float | None

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return self.validation.passed

    @property
    def page(self) -> Path:
        """The validation's report, for a browser."""
        return self.folder / "report" / "report.html"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {
            "weights": "small",
            "psnr_y_db": self.psnr_db,
            "bicubic_psnr_y_db": self.bicubic_psnr_db,
            "picture": str(self.picture),
            "restored": str(self.folder / "restored.png"),
            "tiles": self.tiles,
            "report": str(self.page),
            "validation": self.validation.to_json(),
        }

    def to_text(self) -> str:
        """The report for people. Its numbers have been said as they were found; what failed is said again, and why."""
        return "\n".join(
            [
                *([] if self.passed else [report_text(self.validation)]),
                f"picture: {self.picture}",
                f"report:  {self.page}",
                "The weights are the trained 'small' checkpoint's, not the published ones: 4 blocks of width 192",
                "instead of 24 of width 1536.",
            ]
        )


def run_demo(
    output: str | Path,
    *,
    photo: Path | None = None,
    frame: Path | None = None,
    full: bool = False,
    progress: Progress = SILENT,
) -> DemoReport:
    """Restore, compare with the PyTorch reference, measure quality and cost, report: all in ``output``.

    Args:
        output: the folder; one that an earlier demo wrote is replaced.
        photo: a key photo of the user's own, instead of the embedded photograph with its simulated clip.
        frame: the video frame to restore; without it, one is simulated from ``photo``.
        full: export the engines from the checkpoint, restore the whole photograph, run the PyTorch reference on it, let
            the engines check themselves and time every stage. Otherwise the bundle and a recording that come with the
            package are used, and PyTorch is not needed.
        progress: receives the progress, and the outcome of every part as soon as it is known.

    Raises:
        ImageError: the user's images cannot be used.
        OutputError: the folder holds something else, or cannot be written.
        MissingExtraError: scikit-image, whose photograph is used, is not installed.
        EngineError: an engine cannot be loaded or run.
        ResourceError: memory or disk ran out.
    """
    folder, extent = Path(output), _FULL if full else _SHORT
    images = load_images(photo, frame, part=extent.part)
    _prepare(folder)
    paths = {kind: folder / f"{kind}.png" for kind in images}
    for kind, pixels in images.items():
        write_image(paths[kind], pixels)
    clip = LivePhoto(paths["frame"], paths["photo"], paths.get("photo_frame"))
    settings = RestoreOptions(pad_small=True, batch=extent.batch)
    ready = Bundle.open(trained_bundle("small"))
    size = Size(*images["photo"].shape[:2])
    tiles = len(plan_balanced(size, [TILE], OVERLAP_PX, pad_small=True).tiles)
    progress.say(_announcement(ready, extent, tiles))

    bundle = _export(folder / "bundle", progress) if full else ready
    cost = cost_of_run(bundle, settings, clip, folder / "restored.png", show_progress=progress is not SILENT)
    picture = folder / "comparison.png"
    psnr_db, bicubic_db = _draw(picture, folder, paths)
    gain = "" if psnr_db is None or bicubic_db is None else f", {psnr_db:.2f} dB, {psnr_db - bicubic_db:+.2f} dB"
    gain += gain and " against the upscaled frame (PSNR of y)"
    peak = next((f", {format_bytes(memory.bytes)}" for memory in cost.memory if memory.kind == "peak_rss"), "")
    progress.say(f"restored: {tiles} tiles in {cost.photo_s or 0:.1f} s without PyTorch{peak}{gain}: see {picture}")

    validation = validate_bundle(
        bundle,
        recording=_record(folder / "recording", clip, progress) if full else open_recording(trained_recording("small")),
        data=DataOptions(write_embedded_set(folder / "dataset", count=extent.photos, size=extent.photo_size)),
        output=folder / "report",
        options=ValidateOptions(
            restore=settings,
            check_itself=full,
            cost_runs=extent.timed_runs,
            command=f"livemoments demo{' --full' if full else ''}",
        ),
        cost=None if extent.timed_runs else cost,
        progress=progress,
    )
    return DemoReport(
        folder=folder, picture=picture, validation=validation, tiles=tiles, psnr_db=psnr_db, bicubic_psnr_db=bicubic_db
    )


def _announcement(bundle: Bundle, extent: _Extent, tiles: int) -> str:
    """How long it will take here: a first tile is timed, for machines differ several times."""
    tile_s = measure_tiles(bundle, RestoreOptions(), OrtBackend(), size=TILE, runs=2, warmup=1).seconds[-1]
    seconds = tile_s * (extent.per_tile * tiles + extent.besides)
    about = f"{5 * max(1, round(seconds / 5))} s" if seconds < 120 else f"{round(seconds / 60)} min"
    if not extent.left_out:
        return f"about {about} here: export, restore, parity, quality, cost, report"
    return (
        f"about {about} here: restore, parity, quality, cost, report. Shortened (--full does it all): {extent.left_out}"
    )


def _export(folder: Path, progress: Progress) -> Bundle:
    from livemoments.export.pipeline import export_bundle

    return export_bundle(
        trained_checkpoint("small"),
        folder,
        tiles=(TILE,),
        overlap=OVERLAP_PX,
        verify="none",  # the validation compares every stage, and would only repeat it
        progress=progress,
    )


def _record(folder: Path, clip: LivePhoto[Path], progress: Progress) -> Recording:
    from livemoments.validate.recording.pipeline import record

    return record(
        trained_checkpoint("small"), clip, folder, tile=TILE, overlap=OVERLAP_PX, detail="blocks", progress=progress
    )


def _prepare(folder: Path) -> None:
    marker = folder / ".livemoments-demo"
    check_utf8(folder, OutputError)
    try:
        if folder.exists() and any(folder.iterdir()):
            if not marker.is_file():
                raise OutputError(folder, "is not empty and not an earlier demo's", fix="name a new folder with -o")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise OutputError(folder, f"cannot be written ({error.strerror})", fix="choose another -o") from None


def _draw(picture: Path, folder: Path, paths: dict[str, Path]) -> tuple[float | None, float | None]:
    """Draw the comparison; PSNR (y, dB) of the restored photo and of the upscaled frame, where there is a truth."""
    inputs = load_inputs(paths["frame"], paths["photo"])
    before = inputs.frame_view.window(0, 0, inputs.size.height, inputs.size.width)
    upscaled = (before.clip(0, 1) * 255).round().astype(np.uint8)
    restored = read_photo(folder / "restored.png").pixels
    panels = [("before: the video frame, upscaled", upscaled), ("after: restored by the exported engines", restored)]
    psnr_db = bicubic_db = None
    if "truth" in paths:
        truth = read_photo(paths["truth"]).pixels
        panels.append(("the truth: that instant in full quality", truth))
        psnr_db, bicubic_db = psnr_y(restored, truth), psnr_y(upscaled, truth)
    panels.append(("the key photo, another instant", read_photo(paths["photo"]).pixels))
    footer = "Weights: the trained small checkpoint, which has not seen this photograph."
    write_comparison(picture, panels, detail_at=_DETAIL_AT, footer=footer)
    return psnr_db, bicubic_db
