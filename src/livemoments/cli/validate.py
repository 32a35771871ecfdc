"""``livemoments validate``: a bundle against the reference."""

from __future__ import annotations

from pathlib import Path

import click

from livemoments.cli.bundles import open_checked
from livemoments.cli.extras import needs_extra
from livemoments.cli.options import PATH, provider_option, result_options
from livemoments.cli.output import stdout_is_ours
from livemoments.cli.reports import check_writable, finish, write_report
from livemoments.progress import Progress


@click.command("validate", short_help="Compare a bundle with the PyTorch reference.")
@click.argument("bundle", type=PATH)
@click.option("--checkpoint", type=PATH, required=True, help="The checkpoint that the bundle was exported from.")
@click.option("--frame", metavar="IMAGE", type=PATH, help="A video frame to restore both ways; goes with --photo.")
@click.option("--photo", metavar="IMAGE", type=PATH, help="The key photo beside it.")
@click.option(
    "--photo-frame", metavar="IMAGE", type=PATH, help="The video frame at the photo's instant, if there is one."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the inputs and the noise."
)
@click.option("--limits", metavar="FILE", type=PATH, help="Limits (TOML) instead of those that ship with the package.")
@click.option(
    "--pictures", metavar="DIR", type=PATH, help="Folder for both restored photos, engine.png and reference.png."
)
@click.option("-o", "--output", metavar="REPORT", type=PATH, help="Also write the report to this file, as JSON.")
@provider_option
@result_options
def command(
    bundle: Path,
    checkpoint: Path,
    frame: Path | None,
    photo: Path | None,
    photo_frame: Path | None,
    seed: int,
    limits: Path | None,
    pictures: Path | None,
    output: Path | None,
    provider: str,
    as_json: bool,
    progress: Progress,
) -> None:
    """Compare a bundle with the PyTorch reference: every stage, and a whole photo.

    Both get the same inputs and the same noise. Every stage's relative L2 error and the photo's PSNR against the
    reference's result are held against the limits for the bundle's precision; one line each says what was measured and
    what is allowed. Without --frame and --photo a synthetic pair is restored. Exit code 1 if a limit is missed. Parity
    says that the export is faithful, not that the pictures are good.

    Needs the extra 'validate', and memory for the reference in float32. With --json: the report as one document.

    \b
    Example:
      livemoments validate bundle --checkpoint checkpoint --frame frame.png --photo photo.jpg -o report.json
    """
    if (frame is None) != (photo is None):
        raise click.UsageError("--frame and --photo go together: name both, or neither")
    if photo_frame is not None and photo is None:
        raise click.UsageError("--photo-frame needs --frame and --photo")
    if output is not None:
        check_writable(output)
    with stdout_is_ours(), needs_extra("validating", "validate"):
        from livemoments.validate.parity import validate

        report = validate(
            open_checked(bundle, progress),
            checkpoint,
            frame=frame,
            photo=photo,
            photo_frame=photo_frame,
            seed=seed,
            provider=provider,
            limits=limits,
            pictures=pictures,
            progress=progress,
        )
    if output is not None:
        write_report(report, output)
    finish(report, as_json=as_json)
