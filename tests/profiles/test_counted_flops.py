"""The planner's products at every size against torch's own counter of the PyTorch modules, which runs nothing."""

from __future__ import annotations

import runpy
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from places import ROOT
from tool_support import load_tool
from torch.utils.flop_counter import FlopCounterMode

from livemoments.bundle import Bundle
from livemoments.checkpoints import trained_bundle, trained_checkpoint
from livemoments.export.plan import Planner
from livemoments.export.program import nest
from livemoments.export.stages import PER_BLOCK
from livemoments.profiles.planner.cost import cost_of_stage
from livemoments.reference.checkpoint import read_configs, read_prompt
from livemoments.reference.layout import locate
from livemoments.schedule import build_schedule
from livemoments.types import Size, Stage

LIMIT = 0.02
STAGES = [stage for stage in Stage if stage is not Stage.FLOW]  # RAFT is one network at every size: see the tiny one


def counted_by_torch(checkpoint: Path, stage: Stage, size: Size, steps: tuple[int, ...]) -> int:
    """Operations of one run over one tile, counted while the module runs on the meta device."""
    files = locate(checkpoint)
    configs = read_configs(files)
    prompt = read_prompt(files, configs.transformer)
    plan = Planner(files, configs, prompt, build_schedule(steps), torch.float32, PER_BLOCK).graph(stage, size)
    shapes = [tuple(1 if axis == "batch" else int(axis) for axis in spec.shape) for spec in plan.inputs]
    inputs = tuple(
        torch.empty(shape, dtype=getattr(torch, spec.dtype), device="meta")
        for shape, spec in zip(shapes, plan.inputs, strict=True)
    )
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        plan.module.to("meta")(*nest(plan, inputs))
    return int(counter.get_total_flops())


def compare(bundle: Bundle, checkpoint: Path, size: Size) -> None:
    steps = tuple(int(count) for count in bundle.manifest.schedule.plans)
    for stage in STAGES:
        found = cost_of_stage(bundle, stage, size).flops
        expected = counted_by_torch(checkpoint, stage, size, steps)
        assert expected > 1e7
        assert abs(found / expected - 1) < LIMIT, stage


@pytest.mark.slow
def test_small() -> None:
    """The bundle that ships and its checkpoint."""
    bundle = Bundle.open(trained_bundle(), verify_hashes=False)
    compare(bundle, trained_checkpoint(), bundle.tile_sizes[0])


@pytest.mark.slow
def test_mid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("graphs_only")
    made = tmp_path / "graphs"
    arguments = [str(made), "--size", "mid", "--precision", "fp32", "--tile", "256x256", "--steps", "3", "6"]
    monkeypatch.setattr(sys, "argv", ["graphs_only.py", *arguments])
    runpy.run_path(str(ROOT / "tools" / "graphs_only.py"), run_name="__main__")
    checkpoint = tool.make_hollow_checkpoint(tmp_path / "checkpoint", "mid")
    compare(Bundle.open(made, verify_hashes=False, weights=False), checkpoint, Size(256, 256))


@pytest.mark.slow
def test_published_size(tmp_path: Path) -> None:
    """The graphs that the table of docs/planning.md is planned from, at upstream's tile size."""
    with tarfile.open(ROOT / "benchmarks" / "graphs" / "sd3-medium-fp16.tar.xz") as archive:
        archive.extractall(tmp_path / "graphs", filter="data")
    checkpoint = load_tool("graphs_only").make_hollow_checkpoint(tmp_path / "checkpoint", "sd3-medium")
    compare(Bundle.open(tmp_path / "graphs", verify_hashes=False, weights=False), checkpoint, Size(1024, 1024))
