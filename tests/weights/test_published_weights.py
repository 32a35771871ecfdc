"""From nothing to a restored photo, by the README's commands: fetch, make-prompt, inspect, export, restore."""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import huggingface_hub.constants
import numpy as np
import pytest
from cli_support import run
from places import ROOT
from tiny_hub import Repository, TinyHub
from tiny_sd3 import make_text_encoders

from livemoments.bundle import open_bundle
from livemoments.reference.checkpoint_sizes import SIZES
from livemoments.reference.random_checkpoint import make_checkpoint
from livemoments.weights import fetch as fetching
from livemoments.weights.sources import published_sources

TOKEN = "hf_accepted"
SIZES_HERE = replace(SIZES["tiny"], joint_attention_dim=96, pooled_projection_dim=72, num_layers=2, motion_depth=1)
"""As the tiny text encoders' embeddings are wide."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyHub]:
    """The published repositories, under their names and with their files' names."""
    made = make_checkpoint(tmp_path / "made", size=SIZES_HERE, seed=3)
    encoders = make_text_encoders(tmp_path / "encoders", half=True, shard="100KB")
    hub = TinyHub()
    own = contents(made / "livemoments") | {"motion_encoder.pt": (made / "motion_encoder.pt").read_bytes()}
    # what is there beside the wanted files: a transformer that would be taken for LiveMoments'
    sd3 = contents(made / "sd3") | contents(encoders) | {"transformer/config.json": b"{}", "LICENSE.md": b"community"}
    hub.repositories["Clara-7/LiveMoments"] = Repository(own)
    hub.repositories["stabilityai/stable-diffusion-3-medium-diffusers"] = Repository(sd3, gated=True)
    hub.access.add(TOKEN)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.write(made / "raft-sintel.pth", "models/raft-sintel.pth")
    hub.archives["/models.zip"] = archive.getvalue()
    published = published_sources()
    digest = hashlib.sha256(archive.getvalue()).hexdigest()
    raft = replace(published.raft, url=f"{hub.content_url}/models.zip", sha256=digest)
    monkeypatch.setattr(fetching, "published_sources", lambda: replace(published, raft=raft))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.close()


def readme_commands() -> list[list[str]]:
    """The commands of the README's section, without ``livemoments``."""
    section = (ROOT / "README.md").read_text("utf-8").partition("## With the published weights")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    return [line[1:] for line in lines if line[:1] == ["livemoments"]]


def picture(place: Path, seed: int, side: int) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    cv2.imwrite(str(place), cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC))
    return place


@pytest.mark.slow
def test_the_readmes_commands(hub: TinyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = readme_commands()
    assert [command[0] for command in commands] == [
        *("fetch", "make-prompt", "inspect", "export", "quantize", "validate", "restore")
    ]
    fetch, make_prompt, inspect, export, _, _, restore = commands

    incomplete = []
    for command in (fetch, make_prompt):
        done = run(*command)
        assert done.exit_code == 0, done.output
        incomplete.append(run(*inspect))
    assert (incomplete[0].exit_code, incomplete[1].exit_code) == (2, 0), incomplete[1].output
    assert "prompt_embeds: not there" in incomplete[0].stdout
    assert f"fix: livemoments {shlex.join(make_prompt)}" in incomplete[0].stdout
    assert "T = 333" in incomplete[1].stdout
    assert not (tmp_path / "checkpoint" / "sd3" / "transformer").exists()

    # tiles that the tiny networks can take; without the comparison, and without RAFT, whose tracing takes minutes
    export = [part for part in export if part not in ("--tile", "1024x1024", "1072x1072")]
    stages = "vae_encoder,motion,reference,restoration,vae_decoder"
    done = run(*export, "--tile", "128x128", "--overlap", 16, "--verify", "none", "--stages", stages)
    assert done.exit_code == 0, done.output
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.model.text_tokens == 333
    picture(tmp_path / "frame.png", 1, 96)
    picture(tmp_path / "photo.jpg", 2, 192)
    restore[restore.index("bundle-int8")] = "bundle"
    done = run(*restore, "--flow", "dis")
    assert done.exit_code == 0, done.output
    restored = cv2.imread(str(tmp_path / "restored.jpg"))
    assert restored.shape == (192, 192, 3)
    assert float(restored.std()) > 1
