"""``report.json``: its JSON schema, writing it without a number that JSON does not have, and reading it strictly."""

from __future__ import annotations

import functools
import math
import os
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from livemoments.errors import FileError
from livemoments.store.files import read_file
from livemoments.validate.report_data import REPORT_SCHEMA, ValidationReport

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_IN_MEMORY = "report"
_AGAIN = "write it again with 'livemoments validate'"


def report_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``report.json``; the schema's name is required and fixed."""
    schema = msgspec.json.schema(ValidationReport)
    root = schema["$defs"][ValidationReport.__name__]
    root["properties"]["schema"] = {"const": REPORT_SCHEMA}
    root["required"] = ["schema", *root.get("required", [])]
    return {"$schema": _DIALECT, **schema}


def encode_report(report: ValidationReport) -> bytes:
    """The report as indented JSON, with a line feed at its end.

    Raises:
        ValueError: a number that must be there is not finite (:func:`finite`).
    """
    return msgspec.json.format(msgspec.json.encode(finite(report)), indent=2) + b"\n"


def decode_report(source: bytes | str | os.PathLike[str]) -> ValidationReport:
    """Read a report strictly: every field known, every type right, the schema's version ours.

    Args:
        source: the JSON, or the file that holds it.

    Raises:
        FileError: it cannot be read, is not a whole JSON document, or is not a report of this version.
    """
    path, data = _read(source)
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"is not a whole JSON document ({error})", fix=_AGAIN) from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema is None:
        raise FileError(path, "is not a validation report: it names no schema", fix="name the report.json of a run")
    if schema != REPORT_SCHEMA:
        raise FileError(
            path, f"has the schema '{schema}', and this version reads '{REPORT_SCHEMA}'", fix="measure it again"
        )
    try:
        return msgspec.json.decode(data, type=ValidationReport)
    except msgspec.DecodeError as error:
        raise FileError(path, f"does not fit the report's schema: {error}", fix=_AGAIN) from None


def finite(report: ValidationReport) -> ValidationReport:
    """The report without infinities and NaN, which JSON cannot hold, nor bytes of file names that are not UTF-8.

    A number that may be missing becomes ``None``; an entry of a table or list of numbers is left out. What is no text
    becomes ``?``.

    Raises:
        ValueError: a number that must be there is not finite; the field is named. This is a bug of what measured it.
    """
    cleaned: ValidationReport = _clean(report, ValidationReport, "report")
    return cleaned


def _read(source: bytes | str | os.PathLike[str]) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return _IN_MEMORY, source
    path = Path(source)
    if path.is_dir():
        raise FileError(path, "is a folder", fix="name the report.json in it")
    try:
        return str(path), read_file(path)
    except FileNotFoundError:
        raise FileError(path, "no such file", fix="name the report.json of a run") from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror})") from None


def _clean(value: Any, kind: Any, where: str) -> Any:
    """``value``, declared as ``kind``, without non-finite numbers; unchanged parts are shared, not copied."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        if _is_optional(kind):
            return None
        raise ValueError(f"{where} is {value}, and a report must have a number there")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    cleaned: Any = value
    if isinstance(value, msgspec.Struct):
        kinds = _field_kinds(type(value))
        fields = {name: _clean(getattr(value, name), kinds[name], f"{where}.{name}") for name in kinds}
        cleaned = type(value)(**fields)
    elif isinstance(value, tuple):
        inner = _inner(kind, tuple)
        cleaned = tuple(_clean(item, inner, f"{where}[{n}]") for n, item in enumerate(value) if _is_kept(item, inner))
    elif isinstance(value, dict):
        inner = _inner(kind, dict)
        cleaned = {key: _clean(item, inner, f"{where}.{key}") for key, item in value.items() if _is_kept(item, inner)}
    return value if cleaned == value else cleaned


def _is_kept(item: Any, kind: Any) -> bool:
    return not isinstance(item, float) or math.isfinite(item) or _is_optional(kind)


def _is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union) and type(None) in typing.get_args(kind)


def _inner(kind: Any, container: type) -> Any:
    """What a ``tuple[X, ...]`` or ``dict[str, X]``, alone or beside ``None``, holds."""
    options = typing.get_args(kind) if _is_optional(kind) else (kind,)
    arguments = next(typing.get_args(option) for option in options if typing.get_origin(option) is container)
    return arguments[0] if container is tuple else arguments[1]


_field_kinds = functools.cache(typing.get_type_hints)
