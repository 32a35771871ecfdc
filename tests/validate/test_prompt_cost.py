"""What another prompt would change of the checkpoint's photo."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from cli_support import run

import livemoments
from livemoments.bundle import open_bundle
from livemoments.errors import CheckpointError, UsageError
from livemoments.reference.layout import locate_prompt
from livemoments.reference.weights import read_tensor
from livemoments.runtime.options import RestoreOptions
from livemoments.validate.made_up_photo import made_up_live_photo
from livemoments.validate.options import ValidateOptions
from livemoments.validate.prompt_cost import prompt_check

OPTIONS = RestoreOptions(steps=3)


def write_prompt(folder: Path, tokens: torch.Tensor, pooled: torch.Tensor) -> Path:
    folder.mkdir()
    torch.save(tokens, folder / "prompt_embeds.pt")
    torch.save(pooled, folder / "pooled_prompt_embeds.pt")
    return folder


@pytest.fixture
def without_raft(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint with DIS in the place of RAFT, whose twenty iterations are most of the time."""
    place = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint", copy_function=os.link)
    config = place / "inference_config.yml"
    text = config.read_text()
    config.unlink()
    config.write_text(f"{text}\nflow: dis\n")
    return place


def test_the_price_of_another_prompt(tiny_bundle: Path, without_raft: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle, verify_hashes=False)
    live = made_up_live_photo(bundle.tile_sizes[0], 0)
    tokens, pooled = (read_tensor(file) for file in locate_prompt(without_raft))
    prices = {}
    for name, other in {
        "the same": tokens,
        "nearly": tokens + 1e-4 * torch.randn(tokens.shape),
        "longer": torch.cat([tokens, torch.randn(1, 9, tokens.shape[-1])], dim=1)[0],
    }.items():
        folder = write_prompt(tmp_path / name, other, pooled)
        prices[name] = prompt_check(bundle, without_raft, folder, OPTIONS, live)
    assert {check.status for check in prices.values()} == {"info"}
    assert prices["the same"].value is None  # infinitely many dB
    assert 10 < (prices["longer"].value or 0) < (prices["nearly"].value or 0) < 150
    assert "T = 22 of longer" in prices["longer"].detail
    assert "T = 13" in prices["longer"].detail


def test_a_prompt_that_cannot_be_the_other(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle, verify_hashes=False)
    live = made_up_live_photo(bundle.tile_sizes[0], 0)
    wide = write_prompt(tmp_path / "wide", torch.rand(154, 4096), torch.rand(2048))
    with pytest.raises(CheckpointError, match=r"\(1, 154, 4096\); its last axis should be 64"):
        prompt_check(bundle, tiny_checkpoint, wide, OPTIONS, live)
    with pytest.raises(CheckpointError, match="no file that could be prompt_embeds"):
        prompt_check(bundle, tiny_checkpoint, tmp_path / "nothing", OPTIONS, live)
    torch.save(torch.rand(3, 64), wide / "old_prompt_embeds.pt")
    with pytest.raises(CheckpointError, match="several files that could be prompt_embeds"):
        prompt_check(bundle, tiny_checkpoint, wide, OPTIONS, live)


def test_it_needs_the_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another prompt needs the networks"):
        livemoments.validate_bundle(tiny_bundle, options=ValidateOptions(prompt=tmp_path))
    assert "--prompt needs --checkpoint" in run("validate", tiny_bundle, "--prompt", tmp_path).stderr


@pytest.mark.slow
def test_the_report_has_it(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokens, pooled = (read_tensor(file) for file in locate_prompt(tiny_checkpoint))
    folder = write_prompt(tmp_path / "other", tokens.flip(1), pooled)
    options = ValidateOptions(OPTIONS, levels=("network",), check_itself=False, prompt=folder)
    report = livemoments.validate_bundle(tiny_bundle, tiny_checkpoint, options=options)
    (check,) = [check for check in report.checks if check.name == "prompt.psnr_db"]
    assert check.status == "info"
    assert check.value is not None
