"""``livemoments validate``: a bundle against the reference, over a data set, on this machine; a report and a gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.exits import EXIT_CHECK_FAILED
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import FILE, FOLDER_OR_JSON, PATH, result_options
from livemoments.cli.output import stdout_is_ours, write_json
from livemoments.cli.profile_option import profile_option
from livemoments.cli.reports import check_writable, write_report
from livemoments.cli.restore_options import read_restore_options, restore_options
from livemoments.progress import Progress

if TYPE_CHECKING:
    from livemoments.live_photo import LivePhoto
    from livemoments.runtime.options import RestoreOptions
    from livemoments.validate.options import DataOptions
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
@click.option(
    "--prompt",
    metavar="DIR",
    type=PATH,
    help="Another prompt, of 'make-prompt': report how far the checkpoint's photo with it is from its own. Needs "
    "--checkpoint.",
)
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
@click.option(
    "--compare-interpreter",
    is_flag=True,
    help="On a Mac, of bundles of Core ML packages: run every graph on the --provider's compute unit and in the "
    "interpreter, on the same inputs; a check for each.",
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
@click.option("--ray-address", metavar="ADDRESS", help="Address of a running cluster.  [default: one on this machine]")
@click.option("--allow-failed", type=click.IntRange(min=0), default=0, metavar="N", help="Images that may be unusable.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Small pictures for the report.")
@click.option("--fresh", is_flag=True, help="Begin anew, whatever an earlier run left in REPORT.")
@restore_options(default_seed="the recording's, or 0")
@profile_option
@result_options
def command(
    bundle: Path,
    checkpoint: Path | None,
    recording: Path | None,
    output: Path | None,
    is_gate: bool,
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
    --compare-interpreter         on a Mac: its devices' answers against the interpreter's
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
    if (options["frame"] is None) != (options["photo"] is None):
        raise click.UsageError("--frame and --photo go together: name both, or neither")
    if options["photo_frame"] is not None and options["photo"] is None:
        raise click.UsageError("--photo-frame needs --frame and --photo")
    if checkpoint is not None and recording is not None:
        raise click.UsageError("--checkpoint and --recording are two references: name one")
    if options["prompt"] is not None and checkpoint is None:
        raise click.UsageError("--prompt needs --checkpoint")
    if options["dataset"] is None and (options["set_name"] or options["limit"]):
        raise click.UsageError("--set and --limit need --dataset")
    if options["find_fault"] and checkpoint is None and recording is None:
        raise click.UsageError("--bisect needs a reference: --checkpoint or --recording")
    one_file = output if output is not None and output.suffix == ".json" else None
    if one_file is not None:
        check_writable(one_file)
    feature, extra = ("validating", "validate") if checkpoint is None else ("comparing with a checkpoint", "export")
    with stdout_is_ours(), needs_extra(feature, extra):
        from livemoments.validate.options import ValidateOptions
        from livemoments.validate.recording.opening import open_recording
        from livemoments.validate.run import validate_bundle

        recorded = None if recording is None else open_recording(recording, progress=progress)
        report = validate_bundle(
            open_checked(bundle, progress),
            checkpoint,
            recording=recorded,
            live_photo=_live_photo(options),
            data=_data(options),
            output=None if one_file is not None else output,
            options=ValidateOptions(
                restore=_restore_options(options, recorded),
                levels=options["levels"],
                find_fault=options["find_fault"],
                check_itself=options["self_checks"],
                compare_interpreter=options["compare_interpreter"],
                prompt=options["prompt"],
                cost_runs=options["runs"] if options["cost"] else 0,
                baseline=options["baseline"],
                limits=options["limits"],
                command=" ".join(["livemoments", *sys.argv[1:]]),
            ),
            progress=progress,
        )
    if one_file is not None:
        write_report(report, one_file)
    _finish(report, output, is_gate=is_gate, as_json=as_json)


def _live_photo(options: dict[str, Any]) -> LivePhoto[Path] | None:
    from livemoments.live_photo import LivePhoto

    return (
        None if options["frame"] is None else LivePhoto(*(options[part] for part in ("frame", "photo", "photo_frame")))
    )


def _data(options: dict[str, Any]) -> DataOptions | None:
    from livemoments.validate.harness.image_metrics import StandardMetrics
    from livemoments.validate.harness.options import RunOptions
    from livemoments.validate.options import DataOptions
    from livemoments.validate.quality.registry import select

    names = tuple(spec.name for spec in select(options["metrics"]))  # a name that is unknown is refused in any case
    if options["dataset"] is None:
        return None
    run = RunOptions(
        StandardMetrics(names, weights=options["iqa_weights"], luma=options["luma"]),
        **{name: options[name] for name in ("engine", "workers", "ray_address", "pictures", "fresh")},
    )
    return DataOptions(options["dataset"], options["set_name"], options["limit"], options["allow_failed"], run)


def _restore_options(options: dict[str, Any], recording: Recording | None) -> RestoreOptions:
    """How images are restored; what was not named is as the recording has it."""
    if recording is None:
        return read_restore_options(options)
    recorded = recording.meta.settings
    return read_restore_options(options, seed=recorded.seed, steps=recorded.steps, tile=recorded.tile)


def _finish(report: ValidationReport, output: Path | None, *, is_gate: bool, as_json: bool) -> None:
    from livemoments.validate.report.gate import gate
    from livemoments.validate.report.terminal_text import report_text

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
