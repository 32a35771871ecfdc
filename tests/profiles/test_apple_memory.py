"""The document's table of Core ML packages' memory: what is derived agrees with what was measured."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
from tool_support import load_tool

from livemoments.types import TRANSFORMER_STAGES, Size

economics = load_tool("economics")
apple_memory = load_tool("apple_memory")
DERIVED_REL = 0.01
"""Derived packages against measured ones: masks, programs and scales that the formula leaves out."""
MOST_BYTES = {"int4-weights-coreml": 2e9}
MOST_PEAK_RSS_GB = 10 * 2**30 / 1e9


def test_the_record_keeps_the_bars() -> None:
    """Both networks in 4 bits under 2 GB, and no conversion near 10 GiB."""
    record = json.loads(apple_memory.RECORD.read_text())
    assert len(record["packages"]) == 8
    for recipe, most in MOST_BYTES.items():
        assert sum(apple_memory.measured_weights(recipe).of.values()) < most
    assert max(row["fp16"]["peak_rss_gb"] for row in record["packages"].values()) < MOST_PEAK_RSS_GB
    assert apple_memory.measured_weights("palette6-coreml") is None


@pytest.mark.parametrize("recipe", ["fp16", "int4-weights-coreml"])
def test_the_derivation_agrees_with_what_was_measured(tmp_path: Path, recipe: str) -> None:
    tile = Size(1024, 1024)
    derived = apple_memory.derived_weights(economics.Graphs(tmp_path).costs("fp16", tile).bundle, tile, recipe)
    measured = apple_memory.measured_weights(recipe)
    assert (derived.measured, measured.measured) == (False, True)
    for stage in TRANSFORMER_STAGES:
        assert derived.of[stage] == pytest.approx(measured.of[stage], rel=DERIVED_REL)


@pytest.mark.parametrize(("limit_bytes", "expected"), [(5, "yes"), (4, "DIS"), (3, "DIS"), (2, "no")])
def test_a_device_takes_what_fits(limit_bytes: int, expected: str) -> None:
    exact, with_dis = (types.SimpleNamespace(peak_bytes=peak) for peak in (5, 3))
    assert apple_memory.Row("fp16", 1.0, True, exact, with_dis).fits(limit_bytes) == expected


@pytest.mark.slow
def test_the_table_is_what_the_planner_says() -> None:
    table = apple_memory.TABLE
    assert table.differences(apple_memory.make_table(), table.document.read_text("utf-8")) == []
