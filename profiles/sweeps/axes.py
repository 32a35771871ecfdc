"""What a sweep varies: ``steps=6,4,3``, an option of ``livemoments restore`` and its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from livemoments.errors import UsageError
from livemoments.runtime.flow import KINDS
from livemoments.runtime.keys_values.codecs import KV_DTYPES
from livemoments.runtime.options import RESIDENCIES, RestoreOptions
from livemoments.types import ReferencePolicy, Size

_MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Axis:
    """One option and its values.

    Attributes:
        name: as the command line has it: ``kv-dtype``.
        values: as ``RestoreOptions`` has them; each once, in the order in which they were named.
    """

    name: str
    values: tuple[Any, ...]

    @property
    def option(self) -> str:
        """The attribute of ``RestoreOptions``."""
        return self.name.replace("-", "_")


def parse_axis(text: str) -> Axis:
    """Read ``NAME=VALUE,VALUE…``.

    Raises:
        UsageError: there is no such axis, no value, or a value that the option cannot have.
    """
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or name not in READERS:
        what = f"'{name}' is nothing that a sweep can vary" if equals else f"'{text}' has no '='"
        raise UsageError(f"--sweep {text}: {what}", fix=f"write NAME=VALUE,VALUE… with one of {', '.join(READERS)}")
    read = []
    for value in values.split(","):
        try:
            read.append(READERS[name](value.strip()))
        except UsageError as error:
            raise UsageError(f"--sweep {text}: {error.message}", fix=error.fix) from None
    return Axis(name, tuple(dict.fromkeys(read)))


def with_values(options: RestoreOptions, values: Mapping[str, Any]) -> RestoreOptions:
    """The options with an axis' values in place, by the axes' names."""
    return replace(options, **{name.replace("-", "_"): value for name, value in values.items()})


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST:
        raise UsageError(f"'{text}' is not a whole number from 1 on", fix="write e.g. 6,4,3")
    return int(text)


def _policy(text: str) -> str:
    return str(ReferencePolicy.parse(text))


def _one_of(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise UsageError(f"'{text}' is not one of {', '.join(known)}", fix=f"use {' or '.join(known)}")
        return text

    return read


READERS: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "steps": _count,
        "reference": _policy,
        "kv-dtype": _one_of(*KV_DTYPES),
        "tile": Size.parse,
        "flow": _one_of(*KINDS),
        "batch": _count,
        "residency": _one_of(*RESIDENCIES),
        "vae-tile": Size.parse,
        "pcr-grid": _count,
    }
)
"""How each axis' values are read; what it refuses, it names."""
