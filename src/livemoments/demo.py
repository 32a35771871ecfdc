"""The demonstration: the trained small checkpoint exported, a photograph that it was not trained on restored, what it
gained and cost, and how exact the engines are."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livemoments.checkpoints import trained_checkpoint
from livemoments.errors import EngineError, MissingExtraError, OutputError
from livemoments.export.pipeline import export_bundle
from livemoments.progress import SILENT, Progress
from livemoments.runtime.images import Photo, check_pair_sizes, read_photo, write_image
from livemoments.runtime.inputs import load_inputs
from livemoments.types import Size
from livemoments.validate.clip import Clip
from livemoments.validate.data_plan import DataPlan
from livemoments.validate.datasets.embedded import write_embedded_set
from livemoments.validate.harness.settings import RunSettings
from livemoments.validate.meters import measure_process
from livemoments.validate.picture import write_comparison
from livemoments.validate.quality.psnr import psnr_y
from livemoments.validate.recording.pipeline import record
from livemoments.validate.recording.schema import RESULT
from livemoments.validate.recording.store import Recording
from livemoments.validate.report_data import ValidationReport
from livemoments.validate.run import validate
from livemoments.validate.simulated_clip import simulate_live_photo

TILE_PX = 64
OVERLAP_PX = 16
MOST_PX = 768
"""Longest side of a photograph of the user's own; a larger one is shrunk, for the demo's tiles are small."""
EMBEDDED_IMAGES = 3
"""Photographs with ground truth that the report measures quality on."""
TIMED_RUNS = 5
_DETAIL_AT = (0.45, 0.45)


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
    tile_s: float
    load_s: float
    wall_s: float
    peak_rss_bytes: int
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
            "tile_s": self.tile_s,
            "load_s": self.load_s,
            "restore_wall_s": self.wall_s,
            "restore_peak_rss_bytes": self.peak_rss_bytes,
            "report": str(self.page),
            "validation": self.validation.to_json(),
        }

    def to_text(self) -> str:
        """The report for people."""
        return "\n".join(
            [
                self.validation.to_text(),
                "",
                f"restore: {self.tiles} tiles of {TILE_PX} px, {self.tile_s:.2f} s a tile (six steps, flow and VAE "
                f"included), {self.load_s:.2f} s to load the engines",
                f"         {self.wall_s:.1f} s and {self.peak_rss_bytes / 1e6:.0f} MB peak memory as a fresh process, "
                "without PyTorch",
                *self._gain(),
                f"picture: {self.picture}",
                f"report:  {self.page}",
                "The weights are the trained 'small' checkpoint's, not the published ones: 4 blocks of width 192",
                "instead of 24 of width 1536.",
            ]
        )

    def _gain(self) -> list[str]:
        if self.psnr_db is None or self.bicubic_psnr_db is None:
            return []
        gain_db = self.psnr_db - self.bicubic_psnr_db
        return [
            f"quality: {self.psnr_db:.2f} dB (PSNR of y), {gain_db:+.2f} dB against the upscaled frame, "
            "on a photograph that is not trained on"
        ]


def run_demo(
    output: str | Path, *, photo: Path | None = None, frame: Path | None = None, progress: Progress = SILENT
) -> DemoReport:
    """Go the whole way once, in ``output``: images, bundle, restored photo, recording, report, picture.

    Args:
        output: the folder; one that an earlier demo wrote is replaced.
        photo: a key photo of the user's own, instead of the embedded photograph with its simulated clip.
        frame: the video frame to restore; without it, one is simulated from ``photo``.
        progress: where to report.

    Raises:
        ImageError: the user's images cannot be used.
        OutputError: the folder holds something else, or cannot be written.
        MissingExtraError: scikit-image, whose photograph is used, is not installed.
    """
    folder = Path(output)
    images = _load_images(photo, frame)
    _prepare(folder)
    paths = {kind: folder / f"{kind}.png" for kind in images}
    for kind, pixels in images.items():
        write_image(paths[kind], pixels)
    checkpoint = trained_checkpoint("small")
    bundle = export_bundle(
        checkpoint,
        folder / "bundle",
        tiles=(Size(TILE_PX, TILE_PX),),
        overlap=OVERLAP_PX,
        steps=(6,),
        verify="none",  # the validation below compares every stage, and would only repeat it
        progress=progress,
    )
    restored = _restore_in_fresh_process(folder, paths)
    clip = Clip(paths["frame"], paths["photo"], paths.get("photo_frame"))
    recording = record(
        checkpoint,
        clip,
        folder / "recording",
        tile=Size(TILE_PX, TILE_PX),
        overlap=OVERLAP_PX,
        detail="blocks",
        progress=progress,
    )
    validation = validate(
        bundle,
        recording=recording,
        data=DataPlan(write_embedded_set(folder / "dataset", count=EMBEDDED_IMAGES)),
        output=folder / "report",
        cost_runs=TIMED_RUNS,
        settings=RunSettings(pad_small=True),
        command="livemoments demo",
        progress=progress,
    )
    picture = folder / "comparison.png"
    psnr_db, bicubic_db = _draw(picture, folder, paths, recording, _most_levels(validation))
    return DemoReport(
        folder=folder,
        picture=picture,
        validation=validation,
        psnr_db=psnr_db,
        bicubic_psnr_db=bicubic_db,
        **restored,
    )


def _most_levels(report: ValidationReport) -> int:
    """By how many of 255 levels the engines' photo and the reference's differ at most."""
    found = [rung.max_abs for rung in report.ladder if rung.level == "photo" and rung.name == "result"]
    if not found or found[0] is None:
        raise EngineError("the demo's photo could not be compared with the reference's")
    return round(found[0])


def _load_images(photo: Path | None, frame: Path | None) -> dict[str, np.ndarray]:
    if photo is not None and frame is not None:
        key, clip = read_photo(photo), read_photo(frame)
        check_pair_sizes(clip, key)
        return {"photo": _shrunk(key, MOST_PX), "frame": _shrunk(clip, MOST_PX // 2)}
    source = _shrunk(read_photo(photo), MOST_PX) if photo is not None else _embedded_photograph()
    live = simulate_live_photo(source)
    return {"photo": live.photo, "frame": live.frame, "photo_frame": live.photo_frame, "truth": live.truth}


def _embedded_photograph() -> np.ndarray:
    try:
        from skimage import data
    except ImportError:
        raise MissingExtraError("the embedded photograph", "demo", missing="skimage") from None
    pixels: np.ndarray = data.coffee()
    return pixels


def _shrunk(photo: Photo, longest_px: int) -> np.ndarray:
    import cv2

    scale = min(1.0, longest_px / max(photo.size.height, photo.size.width))
    size = (round(photo.size.width * scale), round(photo.size.height * scale))
    pixels = photo.pixels if photo.bit_depth == 8 else (photo.unit() * 255).round().astype(np.uint8)
    return pixels if scale == 1.0 else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _prepare(folder: Path) -> None:
    marker = folder / ".livemoments-demo"
    try:
        if folder.exists() and any(folder.iterdir()):
            if not marker.is_file():
                raise OutputError(folder, "is not empty and not an earlier demo's", fix="name a new folder with -o")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise OutputError(folder, f"cannot be written ({error.strerror})", fix="choose another -o") from None


def _restore_in_fresh_process(folder: Path, paths: dict[str, Path]) -> dict[str, Any]:
    """Restore by the command line, so that the memory measured is that of a user's ``livemoments restore``."""
    command = [sys.executable, "-m", "livemoments", "restore", str(folder / "bundle"), "--json", "--quiet"]
    command += ["--frame", str(paths["frame"]), "--photo", str(paths["photo"]), "-o", str(folder / "restored.png")]
    if "photo_frame" in paths:
        command += ["--photo-frame", str(paths["photo_frame"])]
    if (folder / "restored.png").exists():
        (folder / "restored.png").unlink()
    cost = measure_process([*command, "--pad-small"])
    if cost.returncode != 0:
        raise EngineError(f"restoring failed with exit code {cost.returncode}: {cost.stderr.strip()}")
    timings = json.loads(cost.stdout)["timings"]
    tile_s: list[float] = timings["tile_seconds"]
    load_s = sum(entry["seconds"] for name, entry in timings["stages"].items() if name.startswith("load:"))
    return {
        "tiles": len(tile_s),
        "tile_s": sorted(tile_s)[len(tile_s) // 2],
        "load_s": load_s,
        "wall_s": cost.wall_s,
        "peak_rss_bytes": cost.peak_rss_bytes,
    }


def _draw(
    picture: Path, folder: Path, paths: dict[str, Path], recording: Recording, levels: int
) -> tuple[float | None, float | None]:
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
    else:
        reference = recording.image_path(recording.images[0], RESULT)
        if reference is None:
            raise EngineError("the demo's recording lacks the reference's photo")
        panels.append(("the same by the PyTorch reference", read_photo(reference).pixels))
    panels.append(("the key photo, another instant", read_photo(paths["photo"]).pixels))
    footer = (
        f"Weights: the trained small checkpoint, which has not seen this photograph. The engines reproduce the PyTorch "
        f"reference to {levels} of 255 levels."
    )
    write_comparison(picture, panels, detail_at=_DETAIL_AT, footer=footer)
    return psnr_db, bicubic_db
