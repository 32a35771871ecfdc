"""What a command prints: text for people, or exactly one JSON document for machines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click
import msgspec

from livemoments.store.names import escaped

if TYPE_CHECKING:
    from rich.table import Table

# Tables that go to a file or a pipe are laid out this wide instead of being cut to 80 columns.
_PIPE_COLUMNS = 160
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB")


def prepare_streams() -> None:
    """Make stdout and stderr usable whatever the caller did to them: a closed one goes nowhere, and a character that
    an encoding lacks (latin-1, cp437) is written as its escape instead of ending finished work with a traceback.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: livemoments inspect B >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - for the process's life
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def write_json(document: Any) -> None:
    """Write one JSON document and a newline to stdout; NumPy scalars and paths are converted, NaN becomes null."""
    try:
        encoded = msgspec.json.encode(document, enc_hook=_plain)
    except UnicodeEncodeError:  # a file name that is no UTF-8, which Python holds as lone surrogates
        encoded = msgspec.json.encode(_escaped(document))
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def write_table(table: Table) -> None:
    """Print a rich table on stdout: coloured on a terminal, plain and wide elsewhere."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=_PIPE_COLUMNS)
    console.print(table)


@contextlib.contextmanager
def stdout_is_ours() -> Iterator[None]:
    """Within the block, what libraries print goes to stderr: stdout carries the command's result only."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def printable(text: str) -> str:
    """Text from a file or a user as a terminal may show it: control characters as their escapes, never sent."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 80) -> str:
    """A name that fits a message: its middle left out beyond ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def plural(count: int, noun: str) -> str:
    """``plural(2, "tile") == "2 tiles"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_bytes(count: float) -> str:
    """A size in decimal units: ``human_bytes(4_200_000) == "4.2 MB"``."""
    for unit in _DECIMAL_UNITS:
        if count < 999.5 or unit == _DECIMAL_UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def human_count(count: int) -> str:
    """A number of parameters, in millions from a million on: ``2028.3 M``."""
    return f"{count / 1e6:.1f} M" if count >= 1_000_000 else f"{count:,}"


def human_seconds(seconds: float) -> str:
    """``0.42 s``, ``12.3 s``, ``3 min 20 s``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _escaped(value: Any) -> Any:
    """A document whose texts are valid: bytes of a file name that is no UTF-8 are shown as ``\\xff``."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, Mapping):
        return {_escaped(key): _escaped(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(entry) for entry in value]
    plain = value if value is None or isinstance(value, (bool, int, float)) else _plain(value)
    return plain if plain is value else _escaped(plain)


def _plain(value: Any) -> Any:
    """For msgspec: turn what JSON does not know into what it does."""
    if isinstance(value, PurePath):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return value.tolist()
    if hasattr(value, "__str__") and type(value).__module__.startswith("livemoments."):
        return str(value)  # Size, ReferencePolicy
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")
