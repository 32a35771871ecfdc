"""Where a key stands in a TOML text, so that an error can name its line."""

from __future__ import annotations

import re

_TABLE = re.compile(r"^\s*(\[\[?)\s*([\w.\-\"' ]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([\w\-]+|\"[^\"]*\"|'[^']*')\s*(?:\.|=)")
_PART = re.compile(r"\.?([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def line_of(text: str, path: str) -> int:
    """The line (from 1) of a key, of its table if it is missing, or 1.

    Arrays of tables count; a value written over several lines or in an inline table is at its key's line.

    Args:
        text: TOML that parses.
        path: as msgspec names it: ``$.chip.sources[1].url``.
    """
    wanted = _parts(path)
    best, best_length = 1, 0
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            names = tuple(part.strip().strip("\"'") for part in header[2].split("."))
            table = _open_table(names, counts, is_array=header[1] == "[[")
            found = table
        elif key := _KEY.match(line):
            found = (*table, key[1].strip("\"'"))
        else:
            continue
        length = _shared(found, wanted)
        if length == len(found) and length > best_length:
            best, best_length = number, length
    return best


def _parts(path: str) -> tuple[str | int, ...]:
    parts: list[str | int] = []
    for name, index in _PART.findall(path.removeprefix("$").removeprefix("`").rstrip("`")):
        if name:
            parts.append(name)
        elif index.isdigit():
            parts.append(int(index))
    return tuple(parts)


def _open_table(
    names: tuple[str, ...], counts: dict[tuple[str | int, ...], int], *, is_array: bool
) -> tuple[str | int, ...]:
    """The table's path, with the index of the entry that each array of tables on the way is at."""
    path: tuple[str | int, ...] = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if is_array and position == len(names) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _shared(found: tuple[str | int, ...], wanted: tuple[str | int, ...]) -> int:
    length = 0
    for one, other in zip(found, wanted, strict=False):
        if one != other:
            break
        length += 1
    return length
