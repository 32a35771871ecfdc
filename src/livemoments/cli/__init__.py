"""The command ``livemoments``: one module per command; errors become exit codes in ``exits.py``.

Importing this package imports click and nothing heavier: back-ends are imported by the command that needs them.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from livemoments.cli import (
    build,
    check,
    completion,
    demo,
    devices,
    export,
    fetch,
    frames,
    inspect_bundle,
    make_checkpoint,
    make_prompt,
    plan,
    profile,
    quantize,
    record,
    restore,
    sensitivity,
    synlive,
    validate,
    verify_bundle,
)
from livemoments.cli.exits import EXIT_BUG, run
from livemoments.cli.output import prepare_streams
from livemoments.pixel_limit import MAX_PIXELS, pixel_limit
from livemoments.version import __version__

PROGRAM = "livemoments"
_COMPLETE_VARIABLE = "_LIVEMOMENTS_COMPLETE"


class Commands(click.Group):
    """The group: commands listed in the order of the work, errors handled by :func:`livemoments.cli.exits.run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands' names, in the order in which they were added."""
        return list(self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line (``sys.argv`` by default) and exit with its code; the other arguments change nothing."""
        if instruction := os.environ.get(_COMPLETE_VARIABLE):
            from click.shell_completion import shell_complete

            sys.exit(shell_complete(self, {}, PROGRAM, _COMPLETE_VARIABLE, instruction))
        sys.exit(run(self, sys.argv[1:] if args is None else args, prog_name or PROGRAM))


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 a check fell short; 2 a mistake to mend, or memory or disk ran out; "
    "130 interrupted (143 by SIGTERM); 70 a bug, with its traceback. "
    "Every command teaches itself: livemoments COMMAND --help.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"Refuse images of more pixels than this.  [default: {MAX_PIXELS}]",
)
@click.pass_context
def cli(context: click.Context, max_pixels: int | None) -> None:
    """Export LiveMoments photo restoration to engines, run it without PyTorch, prove that it still matches.

    A checkpoint (LiveMoments' weights beside those of Stable Diffusion 3 medium) is exported once to a bundle: a
    folder of engine files and a manifest. A bundle restores photos on machines that have no PyTorch.

    \b
    Try it on embedded photographs and small trained weights:
      livemoments demo -o demo-output

    \b
    With the published weights:
      livemoments fetch CHECKPOINT
      livemoments make-prompt CHECKPOINT/sd3 -o CHECKPOINT/prompt
      livemoments export CHECKPOINT -o BUNDLE --precision fp16
      livemoments restore BUNDLE --frame frame.png --photo photo.jpg -o restored.png
    """
    if max_pixels is not None:
        context.with_resource(pixel_limit(max_pixels))


for _module in (
    demo,
    make_checkpoint,
    fetch,
    make_prompt,
    export,
    sensitivity,
    quantize,
    check,
    build,
    frames,
    restore,
    record,
    validate,
    synlive,
    inspect_bundle,
    verify_bundle,
    devices,
    plan,
    profile,
    completion,
):
    cli.add_command(_module.command)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        args: the arguments without the program's name; ``None`` takes them from ``sys.argv``.
    """
    if not sys.warnoptions:
        # Libraries' deprecation notes are nothing that a user could mend; python -W default shows them.
        warnings.simplefilter("ignore")
    prepare_streams()
    try:
        cli.main(args)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else EXIT_BUG
    except Exception:
        # Python would end with 1, which here says that a check fell short.
        traceback.print_exc()
        click.echo("this is a bug in livemoments: please report it with the lines above", err=True)
        return EXIT_BUG
