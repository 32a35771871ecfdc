"""``inspect`` and ``verify`` on real files and graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import error_of, run
from fake_bundle import make_fake_bundle
from PIL import Image

from livemoments.bundle import Bundle
from livemoments.errors import BundleError
from livemoments.types import Stage


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_fake_bundle(tmp_path_factory.mktemp("cli") / "bundle")


def test_inspect_shows_every_stage(bundle: Bundle) -> None:
    text = run("inspect", bundle.path, "--io").stdout
    for stage in Stage:
        assert stage in text
    assert "…" not in text  # nothing cut, although this is no terminal
    for graph in (graph for entry in bundle.manifest.stages.values() for graph in entry.graphs):
        assert graph.path in text
        for spec in (*graph.inputs, *graph.outputs):
            assert f"({', '.join(map(str, spec.shape))})" in text
    document = json.loads(run("inspect", bundle.path, "--json").stdout)
    assert document["manifest"] == json.loads((bundle.path / "manifest.json").read_text())
    assert document["bytes"] == sum(entry.bytes for entry in bundle.manifest.files.values())


def test_verify_runs_every_graph(bundle: Bundle) -> None:
    result = run("verify", bundle.path, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    graphs = [(str(stage), g.size) for stage in Stage for g in bundle.stage(stage).graphs]  # in a tile's order
    assert [(graph["stage"], graph["size"]) for graph in document["graphs"]] == graphs
    assert all(graph["run_s"] > 0 for graph in document["graphs"])
    document = json.loads(run("verify", bundle.path, "--level", "load", "--json").stdout)
    assert [graph["run_s"] for graph in document["graphs"]] == [None] * len(graphs)
    assert json.loads(run("verify", bundle.path, "--level", "files", "--json").stdout)["graphs"] == []
    assert "outputs finite and alive" in run("verify", bundle.path).stdout


def test_verify_names_every_damaged_file(tmp_path: Path) -> None:
    made = make_fake_bundle(tmp_path / "bundle")
    damaged = sorted(made.manifest.files)[:2]
    for name in damaged:
        content = bytearray((made.path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (made.path / name).write_bytes(content)
    error = error_of(run("verify", made.path, "--level", "files", "--json"))
    assert error["type"] == BundleError.__name__
    for name in damaged:
        assert name in error["message"]
    assert run("restore", made.path, "--frame", "f", "--photo", "p", "-o", tmp_path / "x.png").exit_code == 2


@pytest.mark.parametrize(("value", "words"), [(0.0, "the output is dead"), (np.nan, "NaN")])
def test_verify_finds_dead_and_broken_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle, value: float, words: str
) -> None:
    from livemoments.runtime.backends.ort import OrtEngine

    healthy = OrtEngine._run

    def spoiled(self: OrtEngine, inputs: Any, keep: Any) -> Any:
        results = healthy(self, inputs, keep)
        if self.stage is Stage.VAE_DECODER:
            results["image"] = np.full_like(np.asarray(results["image"]), value)
        return results

    monkeypatch.setattr(OrtEngine, "_run", spoiled)
    result = run("verify", bundle.path, "--json")
    assert result.exit_code == 2
    assert words in error_of(result)["message"]
    assert "vae_decoder" in error_of(result)["message"]


def test_verify_refuses_an_unknown_provider(bundle: Bundle) -> None:
    result = run("verify", bundle.path, "--provider", "abacus")
    assert result.exit_code == 2
    assert "'abacus'" in result.stderr


def test_restore_goes_the_whole_way(bundle: Bundle, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    small = random.integers(0, 256, (72, 96, 3), np.uint8)
    Image.fromarray(small).save(tmp_path / "frame.png")
    Image.fromarray(small).resize((192, 144), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=95)
    images = ("--frame", tmp_path / "frame.png", "--photo", tmp_path / "photo.jpg")
    arguments = ("restore", bundle.path, *images, "--reference", "phase-split", "--flow", "dis", "--batch", 2)
    result = run(*arguments, "-o", tmp_path / "restored.png")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'restored.png'}: 192x144" in result.stdout
    assert "reference phase-split, flow by dis, photo frame derived from the photo" in result.stdout
    document = json.loads(run(*arguments, "-o", tmp_path / "again.png", "--json").stdout)
    assert (document["width"], document["height"]) == (192, 144)
    assert document["metadata"]["reference_policy"] == "phase-split"
    assert len(document["timings"]["tile_seconds"]) == document["metadata"]["tiles"]
    with Image.open(tmp_path / "restored.png") as once, Image.open(tmp_path / "again.png") as again:
        assert once.size == (192, 144)
        assert np.array_equal(np.asarray(once), np.asarray(again))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "photo.png"), (b"", "photo.png"), (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "photo.png")],
    ids=["missing", "empty", "truncated"],
)
def test_restore_refuses_a_bad_photo(bundle: Bundle, tmp_path: Path, content: bytes | None, words: str) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "frame.png")
    if content is not None:
        (tmp_path / "photo.png").write_bytes(content)
    images = ("--frame", tmp_path / "frame.png", "--photo", tmp_path / "photo.png")
    result = run("restore", bundle.path, *images, "-o", tmp_path / "out.png")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert not (tmp_path / "out.png").exists()
