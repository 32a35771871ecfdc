"""From what went wrong to an exit code and a message: the one place where the command line handles errors.

========  ==========================================================================================
code      meaning
========  ==========================================================================================
0         done
1         the work was done and a check fell short (:class:`CheckFailedError`, a report that failed)
2         the user's mistake, or the machine's limits (:class:`LiveMomentsError`, options, memory, disk)
70        a bug in livemoments; its traceback is shown (EX_SOFTWARE of BSD's sysexits)
129, 143  ended by SIGHUP, SIGTERM; cleaned up as after an interrupt
130       interrupted (SIGINT, Ctrl-C)
141       the reader of stdout went away (SIGPIPE), e.g. ``livemoments inspect B | head -1``
========  ==========================================================================================
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

from livemoments.cli.output import printable, shortened, write_json
from livemoments.errors import FileError, LiveMomentsError, ResourceError, UsageError
from livemoments.store.errors import DISK_FULL_FIX, disk_full, is_full

EXIT_CHECK_FAILED = 1
EXIT_MISTAKE = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

_INTERRUPTED = "interrupted; nothing was left half-written"
_SMALLER = "use a smaller --tile or --batch 1, --flow dis, --reference phase-split, or a machine with more memory"


class Ended(KeyboardInterrupt):
    """The process was told to end by a signal; raised where it happened, so that context managers clean up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise :class:`Ended`, so that they clean up just as Ctrl-C does.

    A signal that is ignored (``nohup``) stays ignored. Does nothing outside the main thread.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(number)

    previous: dict[int, Any] = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main thread
                previous[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run(group: click.Group, args: Sequence[str], prog_name: str) -> int:
    """Run a command line and return its exit code; a bug's exception passes through.

    Args:
        group: the commands.
        args: the arguments, without the program's name.
        prog_name: how messages call the program.
    """
    as_json = "--json" in (args[: args.index("--")] if "--" in args else args)
    try:
        with signals_as_interrupts():
            # Not group.main(): it would turn Ctrl-C and a library's EOFError into the same exception,
            # and end with 1 (here: a check fell short) when stdout's reader goes away.
            with group.make_context(prog_name, list(args)) as context:
                if _is_working_folder_gone() and "--help" not in args:
                    raise _no_working_folder()  # before libraries end the process over it, with words of their own
                group.invoke(context)
            sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_MISTAKE
    except click.ClickException as error:
        return _report("UsageError", _sentence(error), _fix(error), EXIT_MISTAKE, as_json=as_json)
    except LiveMomentsError as error:
        path = error.path if isinstance(error, FileError) else None
        return _report(type(error).__name__, error.message, error.fix, error.exit_code, as_json=as_json, path=path)
    except MemoryError as error:
        detail = f" ({error})" if str(error) else ""
        return _report(ResourceError.__name__, f"out of memory{detail}", _SMALLER, EXIT_MISTAKE, as_json=as_json)
    except Ended as error:
        return _report("Interrupted", f"{error}: {_INTERRUPTED}", None, 128 + error.number, as_json=as_json)
    except (KeyboardInterrupt, click.Abort):
        return _report("Interrupted", _INTERRUPTED, None, EXIT_INTERRUPTED, as_json=as_json)
    except BrokenPipeError:
        _discard_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        where = f"{shortened(os.fsdecode(error.filename))}: " if error.filename else ""
        if not is_full(error):
            if _is_working_folder_gone():  # meanwhile
                gone = _no_working_folder()
                return _report(type(gone).__name__, gone.message, gone.fix, EXIT_MISTAKE, as_json=as_json)
            if not where or not error.strerror:  # no path that anyone named: a bug
                raise
            fix = "check the path and its permissions"
            message = f"{where}{error.strerror.lower()}"
            return _report(FileError.__name__, message, fix, EXIT_MISTAKE, as_json=as_json, path=str(error.filename))
        full = disk_full(error.filename) if error.filename else ResourceError("the disk is full", fix=DISK_FULL_FIX)
        return _report(ResourceError.__name__, full.message, full.fix, EXIT_MISTAKE, as_json=as_json)
    return 0


def _no_working_folder() -> UsageError:
    return UsageError("the working folder is gone", fix="change to a folder that exists")


def _is_working_folder_gone() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() is the same with more words
    except FileNotFoundError:
        return True
    return False


def _report(kind: str, message: str, fix: str | None, code: int, *, as_json: bool, path: str | None = None) -> int:
    """Print an error on stderr (and with ``--json`` as a document on stdout); return the exit code."""
    with contextlib.suppress(BrokenPipeError):
        shown = printable(message)
        click.echo(shown if kind == "Interrupted" else f"error: {shown}", err=True)
        if fix:
            click.echo(f"  fix: {printable(fix)}", err=True)
    if as_json:
        error: dict[str, Any] = {"type": kind, "message": message, "fix": fix, "exit_code": code}
        if path is not None:
            error["path"] = path
        try:
            write_json({"error": error})
        except BrokenPipeError:
            _discard_stdout()
    return code


def _sentence(error: click.ClickException) -> str:
    """Click's message as the rest of ours are: no capital at the start, no full stop at the end."""
    text = error.format_message().replace("\n", " ").strip()
    text = text[:-1] if text.endswith(".") else text
    return text[:1].lower() + text[1:]


def _fix(error: click.ClickException) -> str | None:
    fix = getattr(error, "fix", None)
    if fix:
        return str(fix)
    context = getattr(error, "ctx", None)
    return f"see '{context.command_path} --help'" if context is not None else None


def _discard_stdout() -> None:
    """Point stdout at nothing, or Python complains about the broken pipe when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
