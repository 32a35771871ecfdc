"""``livemoments sensitivity``: what quantizing each layer by itself costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, result_options
from livemoments.cli.output import plural, stdout_is_ours, write_json
from livemoments.progress import Progress

if TYPE_CHECKING:
    from livemoments.quantize.search.sensitivity_report import Sensitivity

_ROWS = 12
"""Of the table on the terminal; the file has all."""
_NAMES = {"json": "sensitivity.json", "table": "sensitivity.txt", "plot": "sensitivity.svg"}


@click.command("sensitivity", short_help="Measure what quantizing each layer costs.")
@click.argument("bundle", type=PATH)
@click.option("--recipe", metavar="NAME", required=True, help="How a layer is quantized: a recipe of 'quantize'.")
@click.option(
    "--calibration",
    metavar="DIR",
    type=PATH,
    required=True,
    help="Photos like those to be restored, as for 'quantize': DIR/lr, DIR/ref and perhaps DIR/ref_lr.",
)
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=PATH,
    required=True,
    help=f"Gets {', '.join(_NAMES.values())}, and the layers that are done: the same command goes on from there.",
)
@click.option(
    "--photos",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="On how many of the photos: one tile of each, for every layer.",
)
@click.option(
    "--per-step", is_flag=True, help="Also the photo with the layer quantized at one step only; takes 3 times as long."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed of the noise."
)
@result_options
def command(
    bundle: Path,
    recipe: str,
    calibration: Path,
    output: Path,
    photos: int,
    per_step: bool,
    seed: int,
    as_json: bool,
    progress: Progress,
) -> None:
    """Quantize each layer of BUNDLE's transformers alone, and measure.

    For every layer: the noise at its network's output at each step (signal to noise in dB, with the inputs that the
    unquantized network saw), and the PSNR of the photo from the unquantized one's. 'quantize --budget' measures the
    same before it chooses.

    Needs the extra 'export'. With --json: the report, schema livemoments/sensitivity/1: {"schema", "recipe", "key",
    "timesteps", "layers": [{"linear", "block", "kind", "in_features", "out_features", "action", "sqnr_db": [a number
    per step], "photo_psnr_db", "step_photo_psnr_db"}]}; null is infinite.

    \b
    Examples:
      livemoments sensitivity bundle --recipe int4-weights --calibration photos -o sensitivity
    """
    with stdout_is_ours(), needs_extra("quantizing", "export"):
        from livemoments.quantize.calibrate.run import calibrate_for
        from livemoments.quantize.recipes import load_recipe
        from livemoments.quantize.search.heat_map import draw_sensitivity
        from livemoments.quantize.search.photo_loss import open_photo_loss
        from livemoments.quantize.search.sensitivity import SensitivityOptions, measure_sensitivity
        from livemoments.quantize.search.trial_photos import read_trial_photos
        from livemoments.store.files import check_file, write_file

        chosen, work = load_recipe(recipe), output / "work"
        options = SensitivityOptions(chosen, per_step_photo=per_step, work=work)
        check_file(output / _NAMES["json"])
        source = open_checked(bundle, progress)
        tried_on = read_trial_photos(calibration, photos, progress=progress)
        if chosen.needs_calibration:
            observed = calibrate_for(chosen, source, calibration, seed=seed, work=work, progress=progress)
            options = replace(options, calibration=observed)
        with open_photo_loss(source, tried_on, seed=seed, parent=work) as loss:
            report = measure_sensitivity(loss, options, progress=progress)
        for name, text in (
            (_NAMES["json"], json.dumps(report.to_json(), indent=1)),
            (_NAMES["table"], report.to_text()),
            (_NAMES["plot"], draw_sensitivity(report).removesuffix("\n")),
        ):
            write_file(output / name, f"{text}\n".encode())
    if as_json:
        write_json(report.to_json())
    else:
        click.echo(_summary(report, output))


def _summary(report: Sensitivity, output: Path) -> str:
    left = len(report.layers) - _ROWS
    more = [f"… and {plural(left, 'layer')} more"] if left > 0 else []
    return "\n".join(
        [report.to_text(_ROWS), *more, f"wrote {output}: {', '.join(_NAMES.values())}"],
    )
