"""``images.csv``: a row per image, the same columns in the same order for the same metrics."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from livemoments.validate.report_data import ImageResult, ValidationReport

_FIXED: tuple[tuple[str, Callable[[ImageResult], object]], ...] = (
    ("name", lambda image: image.name),
    ("status", lambda image: image.status),
    ("error", lambda image: image.error),
    ("width_px", lambda image: image.width),
    ("height_px", lambda image: image.height),
    ("tiles", lambda image: image.tiles),
    ("seconds", lambda image: image.seconds),
    ("parity_psnr_db", lambda image: image.parity_psnr_db),
    ("seam", lambda image: image.seam),
    ("worker", lambda image: image.worker),
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n")
PCR = ("mean_shift_px", "clamp_rate", "corners_differ")
"""What is known of the alignment of an image's reference tiles; there may be more."""


def metric_names(report: ValidationReport) -> list[str]:
    """Metrics of images: in the report's order, then those that only images have, sorted."""
    known = [metric.name for metric in report.metrics]
    measured = {name for image in report.images for name in (*image.metrics, *image.input_metrics)}
    return [name for name in known if name in measured] + sorted(measured - set(known))


def images_csv(report: ValidationReport) -> str:
    """The table, with a header line.

    Columns: what every image has; ``pcr.NAME``; of every metric ``NAME`` and, where the upscaled input was measured
    too, ``input.NAME``. An empty cell: there is no number.
    """
    pcr = [*PCR, *sorted({name for image in report.images for name in image.pcr} - set(PCR))]
    metrics = metric_names(report)
    of_input = {name for image in report.images for name in image.input_metrics}
    columns = [name for metric in metrics for name in (metric, f"input.{metric}" if metric in of_input else "") if name]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(map(_cell, [*(name for name, _ in _FIXED), *(f"pcr.{name}" for name in pcr), *columns]))
    for image in report.images:
        values = image.metrics | {f"input.{name}": value for name, value in image.input_metrics.items()}
        writer.writerow(
            [
                *(_cell(read(image)) for _, read in _FIXED),
                *(image.pcr.get(name) for name in pcr),
                *(values.get(name) for name in columns),
            ]
        )
    return stream.getvalue()


def _cell(value: object) -> object:
    """A lone carriage return, which the writer does not quote, becomes a line feed; a text that a spreadsheet would run
    as a formula begins with an apostrophe, which it takes for the mark of a text.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
