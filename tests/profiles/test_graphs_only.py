"""The tool that writes a bundle of graphs alone: it is planned with like the real one, and nothing else opens it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from places import ROOT

from livemoments.bundle import Bundle
from livemoments.errors import BundleError
from livemoments.profiles.planner.cost import cost_of_stage
from livemoments.types import Size, Stage


@pytest.mark.slow
def test_graphs_alone_cost_what_the_bundle_costs(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "graphs"
    arguments = [str(made), "--size", "tiny", "--precision", "fp32", "--tile", "128x128", "--steps", "3", "6"]
    monkeypatch.setattr(sys, "argv", ["graphs_only.py", *arguments])
    runpy.run_path(str(ROOT / "tools" / "graphs_only.py"), run_name="__main__")
    with pytest.raises(BundleError):
        Bundle.open(made)
    graphs, whole = Bundle.open(made, verify_hashes=False, weights=False), Bundle.open(tiny_bundle)
    for stage in Stage:
        size = Size(128, 128)
        found, expected = cost_of_stage(graphs, stage, size), cost_of_stage(whole, stage, size)
        assert found.product_flops == expected.product_flops
        assert found.live_bytes == expected.live_bytes
        assert found.weight_bytes == pytest.approx(expected.weight_bytes, rel=0.01)
    assert sum(file.stat().st_size for file in made.rglob("*")) < 2_000_000
