"""A profile as TOML, which :func:`livemoments.profiles.read.load_profile` reads again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from livemoments.profiles.schema import Profile


def profile_toml(profile: Profile) -> bytes:
    """The profile as a TOML file, UTF-8; what has no value is left out."""
    return "\n".join(_table("", msgspec.to_builtins(profile))).strip().encode() + b"\n"


def _table(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    """A table's own values, then its tables: TOML has no way back to the upper one."""
    given = {key: value for key, value in table.items() if value not in (None, (), [], {})}
    tables = {key: value for key, value in given.items() if isinstance(value, dict)}
    arrays = {
        key: value for key, value in given.items() if isinstance(value, (list, tuple)) and isinstance(value[0], dict)
    }
    for key, value in given.items():
        if key not in tables and key not in arrays:
            yield f"{key} = {_value(value)}"
    prefix = f"{path}." if path else ""
    for key, value in tables.items():
        inner = list(_table(f"{prefix}{key}", value))
        if inner:
            yield from ("", f"[{prefix}{key}]", *inner)
    for key, entries in arrays.items():
        for entry in entries:
            yield from ("", f"[[{prefix}{key}]]", *_table(f"{prefix}{key}", entry))


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):  # TOML's basic strings are JSON's, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
