"""Compare the PyTorch reference, or an exported bundle, with a recording of upstream's own code.

    python tools/check_golden.py RECORDING [--images DIR] [--engine BUNDLE]

Prints one line per recorded stage with its error; exits 1 if one is past its limit, 2 if something cannot be read.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from livemoments.bundle import open_bundle
from livemoments.errors import LiveMomentsError
from livemoments.validate.golden import Recording
from livemoments.validate.golden_runs import check_engine, check_reference


@click.command(help=__doc__)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option(
    "--images", type=click.Path(path_type=Path), help="Folder with lr/, ref/ and ref_lr/ (default: RECORDING/images)."
)
@click.option("--engine", type=click.Path(path_type=Path), help="Compare this bundle instead of the PyTorch reference.")
@click.option("--provider", default="cpu", show_default=True, help="Where --engine runs.")
def main(recording: Path, images: Path | None, engine: Path | None, provider: str) -> None:
    try:
        opened = Recording(recording, images)
        rows = check_engine(opened, open_bundle(engine), provider=provider) if engine else check_reference(opened)
    except LiveMomentsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    for row in rows:
        print(row)
    failed = [row for row in rows if not row.passed]
    compared = [row for row in rows if row.error is not None]
    print(f"{len(compared)} stages compared, {len(failed)} past their limit, {len(rows) - len(compared)} not compared")
    sys.exit(1 if failed or not compared else 0)


if __name__ == "__main__":
    main()
