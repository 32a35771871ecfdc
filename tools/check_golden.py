"""Compare the PyTorch reference, or an exported bundle, with a recording of upstream's own code.

    python tools/check_golden.py RECORDING [--images DIR] [--engine BUNDLE]

Prints a line for each recorded tensor, or for each rung of the parity ladder, with its error; exits 1 if one is past
its limit, 2 if something cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from livemoments.bundle import open_bundle
from livemoments.errors import LiveMomentsError
from livemoments.reference.layout import locate
from livemoments.runtime.backends.ort import OrtBackend
from livemoments.validate.ladder.all_points import check_source
from livemoments.validate.ladder.compare import compare
from livemoments.validate.ladder.reproduction import check_reference
from livemoments.validate.recording.golden_format import GoldenRecording
from livemoments.validate.report.terminal_text import report_line


@click.command(help=__doc__)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder with lr/, ref/ and ref_lr/ (default: RECORDING/images)."
)
@click.option("--engine", type=click.Path(path_type=Path), help="Compare this bundle instead of the PyTorch reference.")
@click.option("--provider", default="cpu", show_default=True, help="Where --engine runs.")
def main(recording: Path, images: Path | None, engine: Path | None, provider: str) -> None:
    try:
        opened = GoldenRecording(recording, images)
        with opened.checkpoint() as checkpoint:
            if engine is None:
                results = check_reference(opened, checkpoint)
            else:
                bundle = open_bundle(engine)
                check_source(bundle, locate(checkpoint))
                results = compare(bundle, opened, backend=OrtBackend(provider))
    except LiveMomentsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for result in results:
        print(report_line(result))
    failed = [result for result in results if result.status == "fail"]
    compared = [result for result in results if result.status != "info"]
    print(f"{len(compared)} compared, {len(failed)} past their limit, {len(results) - len(compared)} not compared")
    sys.exit(1 if failed or not compared else 0)


if __name__ == "__main__":
    main()
