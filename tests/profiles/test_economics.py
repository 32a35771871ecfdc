"""The document's table of a 12-megapixel photo: every device is in it, and it is what the planner says today."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_support import load_tool

from livemoments.profiles.read import NAMES

economics = load_tool("economics")
MOST_OF_UPSTREAM = 0.5


@pytest.fixture(scope="module")
def document() -> str:
    return economics.TABLE.document.read_text("utf-8")


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_profile_has_a_row_that_says_where_it_is_from(document: str) -> None:
    found = rows(economics.TABLE.read(document))
    assert [row[0].strip("`") for row in found[: len(NAMES)]] == list(NAMES)
    assert {row[-1] for row in found} == {"predicted", "published"}
    published = [row for row in found if row[-1] == "published"]
    assert [(row[5], row[6]) for row in published] == [("about 40", "14.6"), ("5.75", "-")]


def test_another_table_is_told_apart(document: str) -> None:
    table = economics.TABLE.read(document)
    assert economics.TABLE.differences(table, document) == []
    line = table.splitlines()[2]
    number = rows(table)[0][4]
    changed = table.replace(line, line.replace(f"| {number} |", f"| {int(number) + 1} |"))
    assert economics.TABLE.differences(changed, document) == [f"- {line}", f"+ {changed.splitlines()[2]}"]
    without = "".join(table.splitlines(keepends=True)[:-1])
    assert economics.TABLE.differences(without, document) == [f"- {table.splitlines()[-1]}"]
    with pytest.raises(ValueError, match="lacks the mark"):
        economics.TABLE.read("no table")


@pytest.mark.slow
def test_the_table_is_what_the_planner_says(document: str) -> None:
    assert economics.TABLE.differences(economics.make_table(), document) == []


@pytest.mark.slow
def test_twelve_tiles_and_half_of_upstreams_work(tmp_path: Path) -> None:
    graphs = economics.Graphs(tmp_path)
    _, _, upstream = economics.upstream_plan(graphs)
    _, _, least = economics.frozen_plan(graphs)
    assert (upstream.tiles, least.tiles) == (20, 12)
    assert least.flops <= MOST_OF_UPSTREAM * upstream.flops
    assert (upstream.exact, least.exact) == (True, False)
