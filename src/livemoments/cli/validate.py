"""``livemoments validate``: a bundle against the reference, over a data set, on this machine; a report and a gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.exits import EXIT_CHECK_FAILED
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import (
    FILE,
    FOLDER_OR_JSON,
    PATH,
    POLICY,
    SIZE,
    flow_option,
    no_pcr_option,
    provider_option,
    result_options,
    threads_option,
)
from livemoments.cli.output import stdout_is_ours, write_json
from livemoments.cli.profile_option import profile_option
from livemoments.cli.reports import check_writable, write_report
from livemoments.progress import Progress
from livemoments.types import Size

if TYPE_CHECKING:
    from livemoments.live_photo import LivePhoto
    from livemoments.validate.data_plan import DataPlan
    from livemoments.validate.recording.store import Recording
    from livemoments.validate.report_data import ValidationReport

_LEVELS = ("block", "network", "step", "tile", "photo")


class _LevelsType(click.ParamType):
    """Rungs of the parity ladder with commas between them."""

    name = "LEVEL,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = [part.strip() for part in value.split(",")]
        for name in names:
            if name not in _LEVELS:
                self.fail(f"'{name}' is not one of {', '.join(_LEVELS)}", param, ctx)
        return tuple(level for level in _LEVELS if level in names)


@click.command("validate", short_help="Check a bundle: parity, quality, latency, memory; a report, a CI gate.")
@click.argument("bundle", type=PATH)
@click.option(
    "--checkpoint", type=PATH, help="The checkpoint that BUNDLE was exported from: the reference, by PyTorch."
)
@click.option("--recording", type=PATH, help="Instead: what 'livemoments record' kept of it; needs no PyTorch.")
@click.option("--frame", metavar="IMAGE", type=FILE, help="A video frame to restore both ways; goes with --photo.")
@click.option("--photo", metavar="IMAGE", type=FILE, help="The key photo beside it.  [default: a made-up pair]")
@click.option(
    "--photo-frame", metavar="IMAGE", type=FILE, help="The video frame at the photo's instant, if there is one."
)
@click.option(
    "--dataset",
    metavar="DIR",
    type=PATH,
    help="Images to restore and measure: frames in DIR/lr, photos of the same names in DIR/ref, and perhaps frames at "
    "the photos' instants in DIR/ref_lr and ground truth in DIR/gt.",
)
@click.option(
    "--set",
    "set_name",
    metavar="NAME",
    help="DIR is this known set: synlive260, vivolive144 or iphonelive90. Its count is checked, and the paper's rows "
    "stand beside ours.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most this many images, spread evenly.")
@click.option("-o", "--output", metavar="REPORT", type=FOLDER_OR_JSON, help="Folder for the report, or a .json file.")
@click.option("--gate", "is_gate", is_flag=True, help="For CI: exit 1 with the reasons, also if nothing was compared.")
@click.option("--baseline", metavar="FILE", type=FILE, help="An earlier report.json: what is worse beyond noise fails.")
@click.option("--limits", metavar="FILE", type=FILE, help="Limits (TOML) instead of those that ship with the package.")
@click.option(
    "--levels",
    type=_LevelsType(),
    default=",".join(_LEVELS),
    show_default=True,
    help="Rungs of the parity ladder.",
)
@click.option("--bisect", "find_fault", is_flag=True, help="Name the first block, module and node that is off.")
@click.option(
    "--self-checks/--no-self-checks", default=True, show_default=True, help="Batches, tile order, repetition."
)
@click.option("--cost/--no-cost", default=True, show_default=True, help="Latency and memory.")
@click.option(
    "--runs", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Timed runs of a stage."
)
@click.option(
    "--metrics",
    default="default",
    show_default=True,
    metavar="NAME,…",
    help="Quality metrics: default is psnr_y,ssim_y,ms_ssim_y; all; or names (docs/quality.md).",
)
@click.option(
    "--iqa-weights", metavar="DIR", type=PATH, help="Where the deep metrics' weights lie; none is downloaded."
)
@click.option(
    "--luma",
    type=click.Choice(["bt601-studio", "bt601-full"]),
    default="bt601-studio",
    show_default=True,
    help="What y is.",
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Who works.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="For ray.  [default: one per GPU or machine]")
@click.option("--ray-address", metavar="ADDRESS", help="Of a running cluster.  [default: one on this machine]")
@click.option("--allow-failed", type=click.IntRange(min=0), default=0, metavar="N", help="Images that may be unusable.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Small pictures for the report.")
@click.option("--fresh", is_flag=True, help="Begin anew, whatever an earlier run left in REPORT.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Of the noise.  [default: the recording's, or 0]")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Sampling steps.  [default: the bundle's]")
@click.option("--reference", type=POLICY, help="When ReferenceNet runs.  [default: the bundle's policy]")
@flow_option("Of the images.  [default: the bundle's: engine, unless its checkpoint has no RAFT]")
@click.option("--tile", type=SIZE, help="Use this tile size of the bundle.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Tiles at once.")
@click.option("--pad-small", is_flag=True, help="Extend images that are smaller than a tile.")
@no_pcr_option
@provider_option
@threads_option
@profile_option
@result_options
def command(
    bundle: Path,
    checkpoint: Path | None,
    recording: Path | None,
    frame: Path | None,
    photo: Path | None,
    photo_frame: Path | None,
    output: Path | None,
    is_gate: bool,
    baseline: Path | None,
    limits: Path | None,
    levels: tuple[Any, ...],
    find_fault: bool,
    self_checks: bool,
    cost: bool,
    runs: int,
    as_json: bool,
    progress: Progress,
    **options: Any,
) -> None:
    """Check a bundle: is it what the reference computes, how good are its pictures, what does it cost here?

    \b
    --checkpoint or --recording   the parity ladder: blocks, networks, steps, tiles, the photo, each held against the
                                  limits for the bundle's precision; --bisect names where the engine leaves the
                                  reference
    --dataset                     every image restored and measured; a run that was killed goes on where it stopped
    without --no-self-checks      the engines against themselves
    without --no-cost             latency of stages and tiles, peak memory of a fresh process, energy where a GPU tells

    REPORT becomes a folder with report.html (one page, no network), report.json, images.csv, summary.md and junit.xml.
    Exit code 1 if a limit was missed or an image failed; --gate says why, and also refuses a report that compared
    nothing. Parity says that the export is faithful, not that the pictures are good; quality is measured on --dataset.

    Needs the extra 'validate'; --checkpoint also 'reference' and 'export', and memory for the reference in float32.
    With --json: the report as one document, schema livemoments/validation/1.

    \b
    Examples:
      livemoments validate bundle --checkpoint checkpoint -o report
      livemoments validate bundle --recording recording --dataset photos -o report --gate --baseline old/report.json
      livemoments validate bundle --dataset SynLive260 --set synlive260 --metrics all --iqa-weights weights -o report
    """
    if (frame is None) != (photo is None):
        raise click.UsageError("--frame and --photo go together: name both, or neither")
    if photo_frame is not None and photo is None:
        raise click.UsageError("--photo-frame needs --frame and --photo")
    if checkpoint is not None and recording is not None:
        raise click.UsageError("--checkpoint and --recording are two references: name one")
    if options["dataset"] is None and (options["set_name"] or options["limit"]):
        raise click.UsageError("--set and --limit need --dataset")
    if find_fault and checkpoint is None and recording is None:
        raise click.UsageError("--bisect needs a reference: --checkpoint or --recording")
    one_file = output if output is not None and output.suffix == ".json" else None
    if one_file is not None:
        check_writable(one_file)
    feature, extra = ("validating", "validate") if checkpoint is None else ("comparing with a checkpoint", "export")
    with stdout_is_ours(), needs_extra(feature, extra):
        from livemoments.validate.recording.opening import open_recording
        from livemoments.validate.run import validate

        recorded = None if recording is None else open_recording(recording, progress=progress)
        report = validate(
            open_checked(bundle, progress),
            checkpoint,
            recording=recorded,
            clip=_clip(frame, photo, photo_frame),
            data=_data(options),
            output=None if one_file is not None else output,
            levels=levels,
            find_fault=find_fault,
            check_itself=self_checks,
            cost_runs=runs if cost else 0,
            settings=_settings(options, recorded),
            baseline=baseline,
            limits=limits,
            command=" ".join(["livemoments", *sys.argv[1:]]),
            progress=progress,
        )
    if one_file is not None:
        write_report(report, one_file)
    _finish(report, output, is_gate=is_gate, as_json=as_json)


def _clip(frame: Path | None, photo: Path | None, photo_frame: Path | None) -> LivePhoto[Path] | None:
    from livemoments.live_photo import LivePhoto

    return None if frame is None or photo is None else LivePhoto(frame, photo, photo_frame)


def _data(options: dict[str, Any]) -> DataPlan | None:
    from livemoments.validate.data_plan import DataPlan
    from livemoments.validate.harness.metrics import StandardMeasures
    from livemoments.validate.quality.registry import select

    names = tuple(spec.name for spec in select(options["metrics"]))  # a name that is unknown is refused in any case
    if options["dataset"] is None:
        return None
    return DataPlan(
        folder=options["dataset"],
        name=options["set_name"],
        limit=options["limit"],
        measures=StandardMeasures(metrics=names, weights=options["iqa_weights"], luma=options["luma"]),
        engine=options["engine"],
        workers=options["workers"],
        ray_address=options["ray_address"],
        pictures=options["pictures"],
        allowed_failures=options["allow_failed"],
        fresh=options["fresh"],
    )


def _settings(options: dict[str, Any], recording: Recording | None) -> Any:
    """How images are restored; what was not said is as the recording has it."""
    from livemoments.runtime.options import RestoreOptions

    theirs = None if recording is None else recording.meta.settings
    seed = options["seed"] if options["seed"] is not None or theirs is None else theirs.seed
    steps = options["steps"] or (None if theirs is None else theirs.steps)
    tile = options["tile"] or (None if theirs is None else theirs.tile)
    return RestoreOptions(
        seed=seed or 0,
        steps=steps,
        reference=options["reference"],
        flow=options["flow"],
        tile=Size.parse(tile) if isinstance(tile, str) else tile,
        batch=options["batch"],
        pad_small=options["pad_small"],
        no_pcr=options["no_pcr"],
        provider=options["provider"],
        threads=options["threads"],
    )


def _finish(report: ValidationReport, output: Path | None, *, is_gate: bool, as_json: bool) -> None:
    from livemoments.validate.report.gate import gate
    from livemoments.validate.report.text import report_text

    reasons = gate(report)
    if as_json:
        write_json(report.to_json())
    else:
        click.echo(report_text(report))
        if output is not None:
            click.echo(f"wrote {output if output.suffix == '.json' else output / 'report.html'}")
    if is_gate and reasons:
        for reason in reasons:
            click.echo(f"gate: {reason}", err=True)
    if reasons if is_gate else not report.passed:
        click.get_current_context().exit(EXIT_CHECK_FAILED)
