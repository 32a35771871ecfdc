"""Sets that have a name: SynLive260, vivoLive144, iPhoneLive90, and what the paper published for them."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

from livemoments.errors import UsageError
from livemoments.validate.report_data import PaperRow

SETS = ("synlive260", "vivolive144", "iphonelive90")


class PaperTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the paper for one set: rows of numbers by method, in the order of ``columns`` (our metrics' names)."""

    table: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


class Descriptor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One known set.

    Attributes:
        title: as the paper writes it.
        count: photos that it has.
        has_truth: the reselected instants are there in full quality.
        source: where it is from, and how to get it.
        paper: what was published for it.
    """

    title: str
    count: int
    has_truth: bool
    source: str
    paper: PaperTable


def descriptor(name: str) -> Descriptor:
    """A known set.

    Raises:
        UsageError: the name is unknown.
    """
    sets = _load()
    if name not in sets:
        raise UsageError(f"'{name}' is not a known data set", fix=f"use one of {', '.join(SETS)}, or leave it out")
    return sets[name]


def paper_rows(name: str) -> tuple[PaperRow, ...]:
    """The published rows for a known set, in the paper's order, by our metric names; LiveMoments' own is the last.

    Raises:
        UsageError: the name is unknown.
    """
    paper = descriptor(name).paper
    return tuple(
        PaperRow(method=method, table=paper.table, values=dict(zip(paper.columns, values, strict=True)))
        for method, values in paper.rows.items()
    )


@cache
def _load() -> dict[str, Descriptor]:
    text = resources.files("livemoments.validate.datasets").joinpath("sets.toml").read_bytes()
    return msgspec.toml.decode(text, type=dict[str, Descriptor])
