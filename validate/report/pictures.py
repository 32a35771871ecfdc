"""Which images' pictures a report carries inside itself, and their bytes as data URIs, within a budget."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from livemoments.store.files import read_file
from livemoments.validate.harness.previews import RECORDED_TOP_LEVELS, ROLES, TRUTH_TOP_LEVELS
from livemoments.validate.report.offline_page import data_uri
from livemoments.validate.report_data import ImageResult, ValidationReport

WORST = 12
TYPICAL = 2
BEST = 2
EDGE_PX = 720
BUDGET_BYTES = 6_500_000
"""Of all pictures together, before base64 adds a third."""
_SMALL_BYTES = 90_000
_QUALITY = 82
_HEAT_STOPS = 9
_MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One image's pictures, by role; ``why`` it is shown: ``worst``, ``typical``, ``best`` or empty."""

    image: ImageResult
    why: str
    uris: dict[str, str]
    width: int
    height: int


@dataclass(slots=True)
class Gallery:
    """The panels; how many images have pictures that are not inside; names of pictures that cannot be shown."""

    panels: list[Panel] = field(default_factory=list)
    left_out: int = 0
    unreadable: list[str] = field(default_factory=list)


def make_gallery(report: ValidationReport, folder: Path, *, budget_bytes: int = BUDGET_BYTES) -> Gallery:
    """The worst images' pictures, then some typical and the best ones, until the budget is spent.

    Larger pictures are reduced to 720 pixels; a picture that is missing, damaged or outside of ``folder`` is named and
    left out.

    Args:
        report: whose images' ``files`` are read.
        folder: what they are relative to.
        budget_bytes: of all together.
    """
    gallery, spent, shown = Gallery(), 0, 0
    for image, why in choose_images(report):
        if spent >= budget_bytes:
            break
        read = {role: _read(folder, image.files[role]) for role in ROLES if role in image.files}
        pictures = {role: picture for role, picture in read.items() if picture is not None}
        gallery.unreadable += [image.files[role] for role in read if role not in pictures]
        cost = sum(len(data) for data, _, _ in pictures.values())
        if spent + cost > budget_bytes:
            break
        if pictures:
            *_, (_, _, size) = pictures.values()
            uris = {role: data_uri(data, mime) for role, (data, mime, _) in pictures.items()}
            spent += cost
            gallery.panels.append(Panel(image, why, uris, *size))
        shown += 1
    gallery.left_out = sum(bool(image.files) for image in report.images) - shown
    return gallery


def error_against(files: Mapping[str, str]) -> tuple[str, int]:
    """What an image's error map compares the output with; the difference, in levels of 255, that is drawn brightest."""
    if "truth" in files:
        return "ground truth", round(TRUTH_TOP_LEVELS)
    return "reference's result", round(RECORDED_TOP_LEVELS)


def heat_gradient() -> str:
    """The error map's colours as a CSS gradient, from none to full scale."""
    import cv2
    import numpy as np

    levels = np.linspace(0, 255, _HEAT_STOPS).round().astype(np.uint8)[None]
    stops = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[0, :, ::-1]
    return f"linear-gradient(90deg, {', '.join(f'rgb({red} {green} {blue})' for red, green, blue in stops)})"


def choose_images(report: ValidationReport) -> list[tuple[ImageResult, str]]:
    """Images with pictures, worst first, with the reason; the middle and the best behind them."""
    ordered = sorted((image for image in report.images if image.files), key=_badness(report))
    if len(ordered) <= WORST + TYPICAL + BEST:
        return [(image, "") for image in ordered]
    middle = len(ordered) // 2
    return (
        [(image, "worst") for image in ordered[:WORST]]
        + [(image, "typical") for image in ordered[middle : middle + TYPICAL]]
        + [(image, "best") for image in ordered[-BEST:]]
    )


def _badness(report: ValidationReport) -> Callable[[ImageResult], tuple[bool, float, str]]:
    """Sorts failed images first, then by the first metric that was measured, else by parity; the worst in front."""
    measured = [metric for metric in report.metrics if metric.mean is not None]
    metric = next((m for m in measured if any(m.name in image.metrics for image in report.images)), None)

    def key(image: ImageResult) -> tuple[bool, float, str]:
        value = image.parity_psnr_db if metric is None else image.metrics.get(metric.name)
        if value is not None and metric is not None and metric.better == "lower":
            value = -value
        return image.status != "failed", float("inf") if value is None else value, image.name

    return key


def _read(folder: Path, name: str) -> tuple[bytes, str, tuple[int, int]] | None:
    """A picture's bytes, type and (width, height); ``None`` if it is none or lies outside of the folder."""
    from PIL import Image

    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    path = folder / relative
    try:
        data = read_file(path)
        with Image.open(io.BytesIO(data), formats=list(_MIME)) as picture:
            kind, size = str(picture.format), picture.size
            if len(data) <= _SMALL_BYTES and max(size) <= EDGE_PX:
                picture.load()
                return data, _MIME[kind], size
            picture.draft("RGB", (EDGE_PX, EDGE_PX))
            reduced = picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    reduced.thumbnail((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    reduced.save(stream, "WEBP", quality=_QUALITY, method=4, icc_profile=picture.info.get("icc_profile"))
    return stream.getvalue(), _MIME["WEBP"], reduced.size
